"""The sources of Firefly's examples, and the rule that assigns them to splits.

The files of a folder are the splits. A single file or a data set on the hub has no splits, so each line is assigned to
one by the hash of its content: equal inputs are always in the same split, whatever the order of the lines.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from harness.errors import DataError, unknown
from harness.json_arrays import read_json_objects
from harness.json_lines import missing, read_json_lines
from harness.task import SPLITS, Example, UnlabelledExample
from tasks.common.hub import HubDataset, hub_dataset
from tasks.common.jsonl import target_of
from tasks.firefly.labels import FAMILIES, offered
from tasks.firefly.tasks import TASKS

SUFFIXES: Final = (".jsonl", ".json")
COLUMNS: Final = {"kind": (str,), "input": (str,)}
# Earlier runs recorded one of these sentences as their split, because the rule did not have a name yet.
FORMER_RULES: Final = (
    "by the source's files",
    "by sha256 of kind and input: equal inputs share a split, equal contents in two templates may not",
)
Lines = Iterable[tuple[int, Mapping[str, Any]]]  # line number from 1, and an object with kind and input


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder with a file for each split."""

    path: Path

    def file(self, split: str) -> Path:
        """The file of a split.

        Raises: DataError if the folder has no such file, or two.
        """
        candidates = self.files(split)
        if len(candidates) > 1:
            raise DataError(f"{self.path}: both {' and '.join(f.name for f in candidates)} exist. Keep one of them")
        if not candidates:
            raise missing(self.path / (split + SUFFIXES[0]))
        return candidates[0]

    def files(self, split: str) -> list[Path]:
        """The existing files from which a split can be read."""
        return [path for path in (self.path / (split + suffix) for suffix in SUFFIXES) if path.is_file()]


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of JSON lines, without splits."""

    path: Path


def find(source: str) -> Folder | File | HubDataset:
    """The kind of a source. A folder with one data file, not named after a split, is a file without splits.

    Raises: DataError if it is neither a local path nor a valid name on the hub.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        folder = Folder(path=path)
        others = () if any(map(folder.files, SPLITS)) else _data_files(path)
        # A copy of the data set from the hub is a folder with one file, which is named after the data set.
        return File(path=others[0]) if len(others) == 1 else folder
    if path.is_file():
        return File(path=path)
    # If the first part is a local folder, this is a misspelt path, and a request to the hub could take minutes.
    hub = hub_dataset(source)
    if hub is not None and path.suffix not in SUFFIXES and not path.parent.is_dir():
        return hub
    raise missing(path)


def _data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.name != "dataset_infos.json")


def hub_lines(source: HubDataset) -> Lines:
    """The examples of a data set on the hub at its revision, streamed.

    Raises: DataError if the hub cannot be read or an example lacks a column.
    """
    from datasets import load_dataset

    number = 0
    try:
        stream = load_dataset(source.id, revision=source.revision, split="train", streaming=True)
        for number, line in enumerate(stream, 1):
            for column in COLUMNS:
                if not isinstance(line.get(column), str):
                    raise DataError(
                        f"{source.id}, example {number}: no text in column {column!r}. The columns are "
                        f"{', '.join(sorted(line))}. Is this data set Firefly?"
                    )
            yield number, line
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source.id}: there is no such local path, and example {number + 1} of the data set on the hub cannot be "
            f"read ({type(error).__name__}: {error}). Check the name, or download the file and pass its path to --data"
        ) from error
    if not number:
        raise DataError(f"{source.id}: the data set on the hub has no examples. Check the name")


def file_lines(path: Path) -> Lines:
    """The lines of one file; see ``read_json_lines`` for the errors."""
    return read_json_lines(path, COLUMNS)


def content_hash(kind: str, prompt: str) -> bytes:
    """The sha256 of an example's kind and input. Two lines with the same hash are duplicates."""
    return hashlib.sha256(f"{kind}\0{prompt}".encode()).digest()


@dataclass(kw_only=True)
class Selection:
    """One split of a source without splits: the first ``per_kind`` lines of each kind that are assigned to it.

    duplicates: the number of lines left out because an earlier line has the same kind and input.
    counts: the number of examples by kind. Both are complete once the iterator ``examples`` has ended.
    """

    split: str
    kinds: tuple[str, ...]
    per_kind: int | None
    dev_share: float
    test_share: float
    duplicates: int = field(default=0, init=False)
    counts: Counter[str] = field(default_factory=Counter, init=False)

    @property
    def rule(self) -> str:
        """The name of the splitting rule with its parameters, for fingerprints: content-hash-1(dev=0.05,...).

        Raise the number when equal lines would be assigned to other splits.
        """
        return f"content-hash-1(dev={self.dev_share},test={self.test_share},per_kind={self.per_kind})"

    def examples(self, lines: Lines, name: str) -> Iterator[Example]:
        """The split's examples, in the source's order; an id is the first 16 hexadecimal digits of the content hash.

        Lines of kinds that Firefly does not have are kept, see ``left_out``.
        Reading stops as soon as every kind has ``per_kind`` examples. ``name`` is the source, for error messages.
        """
        seen: set[bytes] = set()
        for number, line in lines:
            kind, prompt = line["kind"], line["input"]
            if left_out(kind, self.kinds) or self.counts[kind] == self.per_kind:
                continue
            digest = content_hash(kind, prompt)
            if self.split_of(digest) != self.split:
                continue
            if digest[:16] in seen:
                self.duplicates += 1
                continue
            seen.add(digest[:16])
            self.counts[kind] += 1
            where = f"{name}, line {number}"
            yield make_example(digest[:8].hex(), line, where, needs_target=self.split == "train")
            if self.per_kind is not None and all(self.counts[k] == self.per_kind for k in self.kinds):
                return

    def split_of(self, digest: bytes) -> str:
        """The split of a content hash. Bytes 8 to 16, as a number in [0, 1), are compared with the shares."""
        position = int.from_bytes(digest[8:16]) / 2**64
        if position < self.test_share:
            return "test"
        return "dev" if position < self.test_share + self.dev_share else "train"


def folder_examples(folder: Folder, split: str, kinds: tuple[str, ...]) -> Iterator[Example]:
    """All examples of the chosen kinds in a split's file; an id is the split and the line number (``test-17``)."""
    path = folder.file(split)
    for number, line in file_lines(path):
        if not left_out(line["kind"], kinds):
            where = f"{path}, line {number}"
            yield make_example(f"{split}-{number}", line, where, needs_target=split == "train")


def unlabelled(path: Path) -> Iterator[UnlabelledExample]:
    """Every line of any file with ``input``, of which ``kind`` may be missing; ids as in ``folder_examples``."""
    for item in read_json_objects(path, {"input": (str,)}):
        yield UnlabelledExample(
            place=item.place,
            id=f"{path.stem}-{item.number}",
            task=item.optional_text("kind"),
            prompt=item.columns["input"],
        )


def make_example(example_id: str, line: Mapping[str, Any], where: str, *, needs_target: bool) -> Example:
    """One line as an example. The choices of a classification task are the labels that the prompt offers.

    Args: where: the place of the line, for errors. needs_target: the line is used for training.
    Raises: DataError if the answer is in another column than ``target``.
    """
    kind, prompt = line["kind"], line["input"]
    if kind not in TASKS:
        return Example(id=example_id, task=kind, prompt=prompt, target="")
    target = target_of(line, where, known=(*COLUMNS, "target"), needed=needs_target)
    choices = offered(kind, prompt) if kind in FAMILIES else None
    return Example(id=example_id, task=kind, prompt=prompt, target=target, choices=choices)


def left_out(kind: str, kinds: Iterable[str]) -> bool:
    """Whether a kind is one of Firefly's that was not chosen. A kind that Firefly does not have may be a misspelt one,
    so that its lines are kept for the check of tasks that all suites share.
    """
    return kind not in kinds and kind in TASKS


def line_numbers(lines: Callable[[], Lines], ids: Iterable[str]) -> dict[str, int]:
    """The line number of each content-hash id; the source is read until all are found."""
    wanted = set(ids)
    numbers: dict[str, int] = {}
    for number, line in lines():
        if len(numbers) == len(wanted):
            break
        key = content_hash(line["kind"], line["input"])[:8].hex()
        if key in wanted:
            numbers.setdefault(key, number)
    return numbers


def check_split(split: str) -> None:
    """Raise a UsageError for a split other than train, dev and test."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
