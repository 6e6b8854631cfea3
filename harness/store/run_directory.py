"""A run's directory: files are written atomically, by one process at a time; record.json, written last, means done."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from harness.errors import StoreError
from harness.store.files import to_bytes, write_atomic
from harness.store.lock import hold_lock, is_locked

if TYPE_CHECKING:
    from pydantic import BaseModel

    from harness.config.spec import RunSpec
    from harness.store.record import Evaluation, Failure, Prediction, RunRecord, Scores

    M = TypeVar("M", bound=BaseModel)


# Runs of a learning-rate search are in this folder inside the folder of runs, so that leaderboards do not list them.
TUNING_FOLDER: Final = "tuning"
_REMEDY: Final = "Restore the file from a copy, or delete the run's folder and run its harness run command again."
_MAX_VALUE_LENGTH: Final = 80  # an error prints at most this many characters of a wrong value


def folder_for_all_runs(out: Path) -> Path:
    """The folder of what several runs share: a learning-rate search shares it with the runs that are reported."""
    return out.parent if out.name == TUNING_FOLDER else out


class State(StrEnum):
    """The state of a run, as ``harness runs`` prints it."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    STOPPED = "stopped"  # interrupted or killed: the same command resumes it


@dataclass(frozen=True, kw_only=True)
class RecoveredPredictions:
    """The complete lines of a file of predictions. n_bytes: their size; anything after them is to be removed."""

    predictions: list[Prediction]
    n_bytes: int


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run. Reading needs no lock; only the process that holds ``lock()`` writes.

    part: the cluster of tasks that the adapter, checkpoints, log and artefacts belong to; "" without clusters.
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
    def inputs(self) -> Path:
        """inputs.json: what the user asked for, so that later commands find data and model again."""
        return self.path / "inputs.json"

    @property
    def train_log(self) -> Path:
        """train.jsonl, or train/<cluster>.jsonl."""
        return self.path / f"{Path('train') / self.part}.jsonl"

    def of(self, part: str) -> RunDirectory:
        """The same run with the adapter, checkpoints, log and artefacts of one cluster."""
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
        """The directory of an evaluation without training: it is laid out like a run's, and is inside the run's."""
        return RunDirectory(self.path / "evaluations" / key)

    def rank_directory(self, rank: int) -> RunDirectory:
        """Where a rank above 0 of torchrun keeps its predictions until rank 0 takes them over."""
        return RunDirectory(self.path / "ranks" / str(rank))

    def rank_directories(self) -> list[RunDirectory]:
        """The directories of ranks whose predictions have not been taken over."""
        return [RunDirectory(path) for path in sorted((self.path / "ranks").glob("*"))]

    def write(self, name: str, value: BaseModel) -> None:
        """Write one of the files above."""
        write_atomic(self.path / name, to_bytes(value))

    def write_scores(self, scores: Scores) -> None:
        self.write("scores.json", scores)

    def predictions(self, tasks: Iterable[str]) -> dict[str, list[Prediction]]:
        """The predictions by task, of a run's files (without a partly written last line) or of a published record's.

        Raises: StoreError for a damaged file, or for a record that holds only hashes of its predictions.
        """
        from harness.store.published_predictions import FILE, HASHES, read_predictions

        if self.has_hashes:
            raise StoreError(
                f"{self.path} has only hashes of its predictions ({HASHES}), because its suite does not allow them to "
                "be published. Use the directory of the run itself."
            )
        if (self.path / FILE).exists():
            return read_predictions(self.path, tasks)
        return {task: self.recover_predictions(task).predictions for task in tasks}

    def has_predictions(self, tasks: Iterable[str]) -> bool:
        """Whether the predictions of all of these tasks are stored here, so that ``predictions`` reads them."""
        from harness.store.published_predictions import FILE

        return (self.path / FILE).exists() or all(self.prediction_file(task).exists() for task in tasks)

    @property
    def is_published(self) -> bool:
        """Whether this is a published record that has its predictions, or their hashes."""
        from harness.store.published_predictions import FILE

        return self.has_hashes or (self.path / FILE).exists()

    @property
    def has_hashes(self) -> bool:
        """Whether this is a published record with hashes of its predictions in place of their texts."""
        from harness.store.published_predictions import HASHES

        return (self.path / HASHES).exists()

    def recover_predictions(self, task: str) -> RecoveredPredictions:
        """The complete lines of a task's predictions; what follows them was being written when a process was killed.

        Raises: StoreError for a damaged line that is not the last one.
        """
        from pydantic import ValidationError

        from harness.store.record import Prediction

        path = self.prediction_file(task)
        complete: list[Prediction] = []
        size = 0
        content = path.read_bytes() if path.exists() else b""
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            try:
                if not line.endswith(b"\n"):
                    break
                complete.append(Prediction.model_validate_json(line))
            except ValidationError as error:
                if size + len(line) == len(content):
                    break
                raise StoreError(
                    f"{path}, line {number} is damaged. Delete the file and run the same command again."
                ) from error
            size += len(line)
        return RecoveredPredictions(predictions=complete, n_bytes=size)

    def state(self) -> State:
        """Done if record.json exists, else running if a process holds the lock, else failed if failure.json exists."""
        if (self.path / "record.json").exists():
            return State.DONE
        if self.is_locked():
            return State.RUNNING
        return State.FAILED if (self.path / "failure.json").exists() else State.STOPPED

    def is_locked(self) -> bool:
        """True while a process works on this run, on this machine or on another one that shares the folder."""
        return is_locked(self.path)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock of this run, so that only this process writes to it (``harness.store.lock``).

        Raises: RunLocked while another process works on it; StoreError if the file system cannot lock files.
        """
        return hold_lock(self.path)

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
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[:_MAX_VALUE_LENGTH]}…"


def find_runs(out: Path) -> list[RunDirectory]:
    """Every run in a folder, sorted by name; folders without spec.json are skipped."""
    if not out.is_dir():
        return []
    return [RunDirectory(p) for p in sorted(out.iterdir()) if (p / "spec.json").exists()]


def open_run(path: Path) -> RunDirectory:
    """Open an existing run. Raises: StoreError if the folder has no spec.json."""
    if not (path / "spec.json").exists():
        raise StoreError(f"{path} is not a run (it has no spec.json). To list runs: harness runs --out {path.parent}")
    return RunDirectory(path)
