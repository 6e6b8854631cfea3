"""The PromptCBLUE suite: the official JSON lines, from a folder, a file or a data set on the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import DataError
from harness.json_arrays import read_json_objects
from harness.json_lines import quoted, read_json_lines
from harness.task import SPLITS, Example, ParameterLimit, Suite, Task, UnlabelledExample
from tasks.common.hub import HubDataset, hub_dataset
from tasks.common.jsonl import build_dataset, target_of
from tasks.promptcblue.tasks import ALIASES, NEEDS_CHOICES, TASKS

if TYPE_CHECKING:
    from datasets import Dataset

ENDINGS = (".json", ".jsonl")
_COLUMNS: Mapping[str, tuple[type, ...]] = {"input": (str,), "task_dataset": (str,), "sample_id": (str, int)}
_KNOWN = frozenset({*_COLUMNS, "target", "answer_choices", "task_type"})


@dataclass(frozen=True, kw_only=True)
class PromptCBLUE(Suite):
    """16 Chinese medical tasks as text generation (PromptCBLUE, CCKS 2023)."""

    name: ClassVar[str] = "promptcblue"
    version: ClassVar[int] = 1
    default_model: ClassVar[str | None] = "tiny"
    parameter_limit: ClassVar[ParameterLimit | None] = ParameterLimit(percent=1.0, source="PromptCBLUE's rule")
    other_tasks: ClassVar[frozenset[str]] = frozenset({"Text2DT", "CMedCausal"})  # in the files with 18 tasks

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The sixteen tasks, in the order of the benchmark's table."""
        return TASKS

    def read(self, source: str, split: str) -> Dataset:
        """Read ``train``, ``dev`` or ``test``; see ``Suite.read``. A file with any other name is the test split."""
        path = _split_file(_place(source), split)
        return build_dataset(
            lambda: _examples(path, split),
            reader=self.name,
            version=self.version,
            files=[path],
            options={"split": split},
        )

    def splits(self, source: str) -> Sequence[str]:
        """The splits that a folder has files for; for a file, its one split."""
        return tuple(_files(_place(source)))

    def pin(self, source: str) -> str:
        """A data set on the hub as ``id@commit``; a local path unchanged."""
        hub = _hub(source)
        return source if hub is None else hub.pinned().name

    def fingerprint(self, source: str) -> Mapping[str, str]:
        """The commit of a data set on the hub, or the sha256 of each local file.

        Raises: DataError for a folder without split files.
        """
        hub = _hub(source)
        if hub is not None:
            return {"revision": str(hub.pinned().revision)}
        if not _files(_place(source)):
            _split_file(_place(source), "test")  # raises the error that lists the folder's files
        return super().fingerprint(source)

    def same_data(self, recorded: Mapping[str, str], present: Mapping[str, str]) -> bool:
        """Whether the fingerprints are equal. Early runs on hub data have none: for them any revision is accepted.

        Their predictions have hashes of the prompts, so that another revision is still noticed.
        """
        return super().same_data(recorded, present) or (not recorded and set(present) == {"revision"})

    def files(self, source: str) -> Sequence[Path]:
        """The files of the splits; none for a data set on the hub."""
        path = Path(source).expanduser()
        return tuple(_files(path).values()) if path.exists() else ()

    def read_unlabelled(self, path: Path, task: str | None) -> Iterator[UnlabelledExample]:
        """JSON lines or an array with ``input``; ``task_dataset`` and ``sample_id`` may be missing."""
        for item in read_json_objects(path, {"input": (str,)}):
            name = item.optional_text("task_dataset")
            yield UnlabelledExample(
                place=item.place,
                id=item.optional_text("sample_id") or str(item.number),
                task=None if name is None else ALIASES.get(name, name),
                prompt=item.columns["input"],
            )

    def submission(self, source: str, predictions: Mapping[str, str]) -> Mapping[str, bytes]:
        """The two files that the competition's site takes; see ``tasks.promptcblue.submission``."""
        from tasks.promptcblue.submission import submission_files

        return submission_files(_split_file(_place(source), "test"), predictions)

    def locate(self, source: str, split: str, ids: Iterable[str]) -> Mapping[str, str]:
        """File and line of examples by id, from one pass over the split's file."""
        path, wanted = _split_file(_place(source), split), set(ids)
        lines = read_json_lines(path, _COLUMNS) if wanted else ()
        return {id_: f"{path}:{number}" for number, line in lines if (id_ := str(line["sample_id"])) in wanted}

    @property
    def sample(self) -> Path | None:
        """The folder of the embedded sample."""
        folder = Path(__file__).parents[1] / "sample" / self.name
        return folder if folder.is_dir() else None


def _hub(source: str) -> HubDataset | None:
    """The data set on the hub that a source names; None if the source is a local path."""
    return None if Path(source).expanduser().exists() else hub_dataset(source)


def _place(source: str) -> Path:
    """The folder or file of a source; a data set on the hub is downloaded."""
    path, hub = Path(source).expanduser(), _hub(source)
    if path.exists():
        return path
    if hub is None:
        raise DataError(
            f"{source}: no such folder or file. PromptCBLUE is read from a folder with {_file_names(SPLITS)}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    hub = hub.pinned()
    try:
        patterns = [split + ending for split in SPLITS for ending in ENDINGS]
        return Path(snapshot_download(hub.id, repo_type="dataset", revision=hub.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"{source}: no such folder or file, and it cannot be downloaded from the hub ({type(error).__name__}). "
            f"Download the data and pass their folder to --data; it must contain {_file_names(SPLITS)}"
        ) from error


def _files(path: Path) -> dict[str, Path]:
    """The file of each split in a folder; for a file, its one split."""
    if not path.is_dir():
        return {path.stem if path.stem in SPLITS else "test": path}
    files: dict[str, Path] = {}
    for split in SPLITS:
        candidates = [file for file in (path / (split + ending) for ending in ENDINGS) if file.is_file()]
        if len(candidates) > 1:
            raise DataError(f"{path}: both {' and '.join(f.name for f in candidates)} exist. Keep one of them")
        if candidates:
            files[split] = candidates[0]
    return files


def _split_file(path: Path, split: str) -> Path:
    files = _files(path)
    if split in files:
        return files[split]
    if not path.is_dir():
        only = next(iter(files))
        raise DataError(
            f"{path}: this file is the {only} split, but the {split} split is needed. Pass a folder with all splits"
        )
    names = sorted(file.name for file in path.iterdir())
    content = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    raise DataError(
        f"{path}: the folder has no {_file_names([split])}. It contains {content or 'no files'}. Check the path"
    )


def _file_names(splits: Sequence[str]) -> str:
    return ", ".join(" or ".join(split + ending for ending in ENDINGS) for split in splits)


def _examples(path: Path, split: str) -> Iterator[Example]:
    """The lines of one file. Of a line of another task only the columns' types are checked.

    Raises: DataError for a column of the wrong type, an answer in another column than ``target``, missing choices if
        the task's parser needs them, and a sample_id that an earlier line has.
    """
    hashes: set[int] = set()  # hashes need less memory than the ids of a million lines
    for number, line in read_json_lines(path, _COLUMNS):
        example = _example(line, f"{path}, line {number}", needs_target=split == "train")
        before = len(hashes)
        hashes.add(hash(example.id))
        if len(hashes) == before:
            _refuse_duplicate(path, number, example.id)
        yield example


def _example(line: Mapping[str, Any], where: str, *, needs_target: bool) -> Example:
    task = ALIASES.get(line["task_dataset"], line["task_dataset"])
    if task not in TASKS:
        return Example(id=str(line["sample_id"]), task=task, prompt=line["input"], target="")
    if not line["input"].strip():
        raise DataError(f"{where}: 'input' is blank. Remove the line or add the question")
    target = target_of(line, where, known=_KNOWN, needed=needs_target)
    choices = line.get("answer_choices")
    if choices is not None and not (isinstance(choices, list) and all(isinstance(c, str) for c in choices)):
        raise DataError(f"{where}: 'answer_choices' must be a list of texts or null, not {quoted(choices)}")
    if not choices and task in NEEDS_CHOICES:
        raise DataError(f"{where}: {task} needs 'answer_choices', the list of options that the prompt offers")
    return Example(
        id=str(line["sample_id"]),
        task=task,
        prompt=line["input"],
        target=target,
        choices=tuple(choices) if choices else None,
    )


def _refuse_duplicate(path: Path, number: int, sample_id: str) -> None:
    """Raise a DataError if an earlier line has the same id; two different ids can have the same hash."""
    for earlier, line in read_json_lines(path, _COLUMNS):
        if earlier == number:
            return
        if str(line["sample_id"]) == sample_id:
            raise DataError(
                f"{path}, line {number}: sample_id {quoted(sample_id)} is already used in line {earlier}. "
                "Rename or remove one of the two, because predictions are stored by id"
            )
