"""A run's directory: atomic writes, one process at a time, and the file that means "done" written last."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from harness.errors import RunLocked, StoreError
from harness.store.files import no_space_is_an_error, write_atomic

if TYPE_CHECKING:
    from pydantic import BaseModel

    from harness.config.spec import RunSpec
    from harness.store.record import Evaluation, Failure, Prediction, RunRecord, Scores

    M = TypeVar("M", bound=BaseModel)


_REMEDY: Final = "Restore the file from a copy, or delete the run's folder and give its harness run command again."


_LONGEST: Final = 80  # characters of a wrong value that an error shows


class State(StrEnum):
    """How far a run is."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    STOPPED = "stopped"  # interrupted: the same command goes on


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run. Reading never needs a lock; only the process that holds ``lock()`` writes.

    part: the cluster of tasks whose adapter, checkpoints, log and artefacts are meant; "" where all tasks share one.
    """

    path: Path
    part: str = ""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints" / self.part

    @property
    def adapter(self) -> Path:
        return self.path / "adapter" / self.part

    @property
    def artefacts(self) -> Path:
        return self.path / "artefacts" / self.part

    @property
    def train_log(self) -> Path:
        """train.jsonl, or train/<cluster>.jsonl."""
        return self.path / f"{Path('train') / self.part}.jsonl"

    def of(self, part: str) -> RunDirectory:
        """The same run, with the files of one cluster."""
        return RunDirectory(self.path, part)

    def prediction_file(self, task: str) -> Path:
        """predictions/<task>.jsonl; a slash in a task's name becomes an underscore."""
        return self.path / "predictions" / f"{task.replace('/', '_')}.jsonl"

    def spec(self) -> RunSpec | None:
        from harness.config.spec import RunSpec

        return self._read("spec.json", RunSpec)

    def record(self) -> RunRecord | None:
        from harness.store.record import RunRecord

        return self._read("record.json", RunRecord)

    def scores(self) -> Scores | None:
        from harness.store.record import Scores

        return self._read("scores.json", Scores)

    def failure(self) -> Failure | None:
        from harness.store.record import Failure

        return self._read("failure.json", Failure)

    def evaluation(self) -> Evaluation | None:
        from harness.store.record import Evaluation

        return self._read("evaluation.json", Evaluation)

    def evaluation_directory(self, key: str) -> RunDirectory:
        """Where an evaluation without training is kept: a directory like a run's, inside of it."""
        return RunDirectory(self.path / "evaluations" / key)

    def write(self, name: str, value: BaseModel) -> None:
        """Write one of the files above."""
        write_atomic(self.path / name, (value.model_dump_json(indent=1) + "\n").encode())

    def write_scores(self, scores: Scores) -> None:
        self.write("scores.json", scores)

    def predictions(self, task: str) -> list[Prediction]:
        """Every whole line of a task's predictions; a half-written last line is dropped."""
        return self.recover_predictions(task)[0]

    def recover_predictions(self, task: str) -> tuple[list[Prediction], int]:
        """The whole lines and the number of bytes that they take; what stands behind them was cut off by a kill.

        Raises: StoreError for a damaged line that is not the last.
        """
        from pydantic import ValidationError

        from harness.store.record import Prediction

        path = self.prediction_file(task)
        found: list[Prediction] = []
        size = 0
        content = path.read_bytes() if path.exists() else b""
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            try:
                if not line.endswith(b"\n"):
                    break
                found.append(Prediction.model_validate_json(line))
            except ValidationError as error:
                if size + len(line) == len(content):
                    break
                raise StoreError(f"{path}, line {number}: no prediction. Delete the file to make it again.") from error
            size += len(line)
        return found, size

    def state(self) -> State:
        """Done where record.json is; running where a process holds the lock; failed where failure.json is."""
        if (self.path / "record.json").exists():
            return State.DONE
        if self.is_locked():
            return State.RUNNING
        return State.FAILED if (self.path / "failure.json").exists() else State.STOPPED

    def is_locked(self) -> bool:
        """True while another process works on this run."""
        try:
            with self._lock_file() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Own the run; the lock is the kernel's and is gone with the process, however it dies.

        Raises: RunLocked while another process works on it.
        """
        with no_space_is_an_error(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = self._lock_file()
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunLocked(
                    f"another process (pid {file.read().strip() or 'unknown'}) works on {self.path}. "
                    "Wait for it, or stop it and give the same command again: it goes on where that one was."
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def _lock_file(self) -> IO[str]:
        return (self.path / ".lock").open("a+", encoding="utf-8")

    def _read(self, name: str, model: type[M]) -> M | None:
        path = self.path / name
        try:
            return parse_file(path, path.read_bytes(), model)
        except FileNotFoundError:
            return None


def parse_file(path: Path, data: bytes, model: type[M]) -> M:
    """The content of one of a run's JSON files; a file of an older schema is converted first.

    Raises: StoreError that names the place in the file, what is wrong there and the remedy.
    """
    from pydantic import ValidationError

    from harness.store.migrations import migrate

    try:
        content = json.loads(data)
    except ValueError as error:  # also a UnicodeDecodeError: bytes that are not text
        raise StoreError(f"{path} is damaged: not valid JSON ({error}). {_REMEDY}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path} is damaged: a JSON object is expected, found {_shown(content)}. {_REMEDY}")
    version = model.model_fields.get("schema_version")
    if version is not None:
        content = migrate(content, path, version.default)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        if first["type"] == "extra_forbidden":
            raise StoreError(
                f"{path}: unknown key {where!r}. The file was written by another version of mtlora-harness, or "
                "edited: upgrade mtlora-harness, or restore the file."
            ) from error
        found = "" if first["type"] == "missing" else f", found {_shown(first['input'])}"
        raise StoreError(f"{path} is damaged: {where}: {first['msg']}{found}. {_REMEDY}") from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def find_runs(out: Path) -> list[RunDirectory]:
    """Every run below a folder, by name; folders without a spec are passed over."""
    if not out.is_dir():
        return []
    return [RunDirectory(p) for p in sorted(out.iterdir()) if (p / "spec.json").exists()]


def open_run(path: Path) -> RunDirectory:
    """A run that exists. Raises: StoreError saying what the folder lacks."""
    if not (path / "spec.json").exists():
        raise StoreError(f"{path} is no run (it has no spec.json). See: harness runs --out {path.parent}")
    return RunDirectory(path)


FOLDER: Final = "tuning"  # of the folder of runs: out of the leaderboard's sight
