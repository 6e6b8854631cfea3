"""The suite: the official JSON lines, from a folder, a file or a data set on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import DataError, nearest
from harness.task import Example, ParameterLimit, Suite, Task
from tasks.common.jsonl import build_dataset, read_json_lines, shown
from tasks.promptcblue.tasks import ALIASES, NEEDS_CHOICES, TASKS

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "dev", "test")
ENDINGS = (".json", ".jsonl")
_COLUMNS: Mapping[str, tuple[type, ...]] = {"input": (str,), "task_dataset": (str,), "sample_id": (str, int)}
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class PromptCBLUE(Suite):
    """16 Chinese medical tasks as text generation (PromptCBLUE, CCKS 2023)."""

    name: ClassVar[str] = "promptcblue"
    version: ClassVar[int] = 1
    parameter_limit: ClassVar[ParameterLimit | None] = ParameterLimit(percent=1.0, source="PromptCBLUE's rule")

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The sixteen tasks, in the order of the benchmark's table."""
        return TASKS

    def read(self, source: str, split: str) -> Dataset:
        """Read ``train``, ``dev`` or ``test``: see ``Suite.read``. A file of another name than these is ``test``."""
        path = _split_file(_place(source), split)
        return build_dataset(
            lambda: _examples(path), reader=self.name, version=self.version, files=[path], options={"split": split}
        )

    def splits(self, source: str) -> Sequence[str]:
        """The splits that a folder has files of; of a file the one that it holds."""
        return tuple(_files(_place(source)))

    def files(self, source: str) -> Sequence[Path]:
        """The files of the splits; none for a data set on the hub."""
        path = Path(source).expanduser()
        return tuple(_files(path).values()) if path.exists() else ()

    def locate(self, source: str, split: str, ids: Iterable[str]) -> Mapping[str, str]:
        """File and line of examples by id, from one pass over the split's file."""
        path, wanted = _split_file(_place(source), split), set(ids)
        lines = read_json_lines(path, _COLUMNS) if wanted else ()
        return {row["sample_id"]: f"{path}:{number}" for number, row in lines if row["sample_id"] in wanted}

    @property
    def sample(self) -> Path | None:
        """The sample that comes with the package."""
        folder = Path(__file__).parents[1] / "sample" / self.name
        return folder if folder.is_dir() else None


def _place(source: str) -> Path:
    """The folder or file that a source names, downloaded where it is the name of a data set on the hub."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not _HUB_NAME.fullmatch(source):
        raise DataError(f"{source}: no such folder or file. PromptCBLUE needs a folder with {_wanted(SPLITS)}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = [split + ending for split in SPLITS for ending in ENDINGS]
        return Path(snapshot_download(source, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"{source}: no such folder or file, and it cannot be had from the hub ({type(error).__name__}). "
            f"Download the data and name their folder, which needs {_wanted(SPLITS)}"
        ) from error


def _files(path: Path) -> dict[str, Path]:
    """The file of each split of a folder, or the one split that a file holds."""
    if not path.is_dir():
        return {path.stem if path.stem in SPLITS else "test": path}
    found: dict[str, Path] = {}
    for split in SPLITS:
        there = [file for file in (path / (split + ending) for ending in ENDINGS) if file.is_file()]
        if len(there) > 1:
            raise DataError(f"{path}: both {there[0].name} and {there[1].name} are there. Keep one of them")
        if there:
            found[split] = there[0]
    return found


def _split_file(path: Path, split: str) -> Path:
    files = _files(path)
    if split in files:
        return files[split]
    if not path.is_dir():
        held = next(iter(files))
        raise DataError(
            f"{path}: this file is the {held} split, but {split} is asked for. Name a folder with all splits"
        )
    names = sorted(file.name for file in path.iterdir())
    there = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    raise DataError(f"{path}: no {_wanted([split])}. The folder holds {there or 'nothing'}")


def _wanted(splits: Sequence[str]) -> str:
    return ", ".join(" or ".join(split + ending for ending in ENDINGS) for split in splits)


def _examples(path: Path) -> Iterator[Example]:
    """The lines of one file.

    Raises: DataError for an unknown task, a column of the wrong type, choices that are missing where the task's answers
        cannot be read without them, and a sample id that an earlier line has.
    """
    seen: set[int] = set()  # hashes of ids, a fraction of their size: a million lines must fit
    for number, row in read_json_lines(path, _COLUMNS):
        example = _example(row, f"{path}, line {number}")
        known = len(seen)
        seen.add(hash(example.id))
        if len(seen) == known:
            _refuse_duplicate(path, number, example.id)
        yield example


def _example(row: Mapping[str, Any], where: str) -> Example:
    task = ALIASES.get(row["task_dataset"], row["task_dataset"])
    if task not in TASKS:
        hint = nearest(task, [*TASKS, *ALIASES]) or f" Known: {', '.join(TASKS)}."
        raise DataError(
            f"{where}: no task {shown(task)} in PromptCBLUE.{hint} Rename 'task_dataset' or remove the line"
        )
    if not row["input"].strip():
        raise DataError(f"{where}: 'input' is blank. Remove the line or give the question")
    target = row.get("target")
    if not isinstance(target, str | None):
        raise DataError(f"{where}: 'target' must be text, or null or missing where it is withheld, not {shown(target)}")
    choices = row.get("answer_choices")
    if choices is not None and not (isinstance(choices, list) and all(isinstance(c, str) for c in choices)):
        raise DataError(f"{where}: 'answer_choices' must be a list of texts or null, not {shown(choices)}")
    if not choices and task in NEEDS_CHOICES:
        raise DataError(f"{where}: {task} needs 'answer_choices', the list of options that the question offers")
    return Example(
        id=str(row["sample_id"]),
        task=task,
        prompt=row["input"],
        target=(target or "") if (target or "").strip() else "",
        choices=tuple(choices) if choices else None,
    )


def _refuse_duplicate(path: Path, number: int, sample_id: str) -> None:
    """Raise for an id that an earlier line has, unless only the hashes are equal."""
    for earlier, row in read_json_lines(path, _COLUMNS):
        if earlier == number:
            return
        if str(row["sample_id"]) == sample_id:
            raise DataError(
                f"{path}, line {number}: sample_id {shown(sample_id)} is that of line {earlier} already. "
                "Rename or remove one of the two: predictions are stored by id"
            )
