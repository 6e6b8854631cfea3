"""Where Firefly's lines come from, and which of them belong to a split.

A folder of split files is taken as it is. A single file or a hub data set has no split, so every line is sent to one
by the hash of its content: equal inputs always land in the same split, in any order of the lines.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from harness.errors import DataError, nearest, unknown
from harness.task import Example
from tasks.common.jsonl import HubDataset, hub_dataset, missing, read_json_lines
from tasks.firefly.labels import FAMILIES, offered
from tasks.firefly.tasks import TASKS

SPLITS: Final = ("train", "dev", "test")
SUFFIXES: Final = (".jsonl", ".json")
COLUMNS: Final = {"kind": (str,), "input": (str,), "target": (str,)}
FORMER_RULES: Final = (  # what runs recorded as their split before the rule had a name: sentences of ``describe``
    "by the source's files",
    "by sha256 of kind and input: equal inputs share a split, equal contents in two templates may not",
)
Lines = Iterable[tuple[int, Mapping[str, Any]]]  # (line number from 1, kind, input and target)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder with a file for each split."""

    path: Path

    def file(self, split: str) -> Path:
        """The file of a split; DataError naming the folder's files when there is none, or when there are two."""
        there = self.files(split)
        if len(there) > 1:
            raise DataError(f"{self.path}: both {there[0].name} and {there[1].name} are there. Keep one of them")
        if not there:
            raise missing(self.path / (split + SUFFIXES[0]))
        return there[0]

    def files(self, split: str) -> list[Path]:
        """The files that a split could be read from."""
        return [path for path in (self.path / (split + suffix) for suffix in SUFFIXES) if path.is_file()]


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of JSON lines, without splits."""

    path: Path


def find(source: str) -> Folder | File | HubDataset:
    """What a source is; DataError when it is neither on disk nor a possible hub id."""
    path = Path(source).expanduser()
    if path.is_dir():
        return Folder(path=path)
    if path.is_file():
        return File(path=path)
    # Where the first part is a folder here, a path was misspelt: the hub would only be asked in vain, for minutes.
    hub = hub_dataset(source)
    if hub is not None and path.suffix not in SUFFIXES and not path.parent.is_dir():
        return hub
    raise missing(path)


def hub_lines(source: HubDataset) -> Lines:
    """The rows of a hub data set at its revision, streamed.

    Raises: DataError when the hub cannot be read or a row has other columns.
    """
    from datasets import load_dataset

    number = 0
    try:
        rows = load_dataset(source.id, revision=source.revision, split="train", streaming=True)
        for number, row in enumerate(rows, 1):
            for column in COLUMNS:
                if not isinstance(row.get(column), str):
                    there = ", ".join(sorted(row))
                    raise DataError(f"{source.id}, row {number}: no text in {column!r}; the row has {there}")
            yield number, row
    except (OSError, ValueError) as error:
        place = f"row {number + 1}" if number else "the first row"
        raise DataError(
            f"{source.id}: no such file or folder here, and as a data set of the hub it cannot be read at {place} "
            f"({type(error).__name__}: {error}). Check the name, or download the file and give its path"
        ) from error
    if not number:
        raise DataError(f"{source.id}: a data set without rows")


def file_lines(path: Path) -> Lines:
    """The lines of one file; DataError for what is no line of Firefly."""
    return read_json_lines(path, COLUMNS)


def content_hash(kind: str, prompt: str) -> bytes:
    """sha256 of an example's kind and input, which is what makes two lines equal."""
    return hashlib.sha256(f"{kind}\0{prompt}".encode()).digest()


@dataclass(kw_only=True)
class Selection:
    """The lines of one split of a source without splits: the first ``per_kind`` of each kind that fall into it.

    duplicates: lines left out because an earlier one has the same kind and input; complete once ``examples`` has ended.
    """

    split: str
    kinds: tuple[str, ...]
    per_kind: int | None
    dev_share: float
    test_share: float
    duplicates: int = field(default=0, init=False)
    found: Counter[str] = field(default_factory=Counter, init=False)

    @property
    def rule(self) -> str:
        """The identity of the rule that makes the splits, with its parameters: content-hash-1(dev=0.05,...).

        Raise the number when equal lines would be divided otherwise.
        """
        return f"content-hash-1(dev={self.dev_share},test={self.test_share},per_kind={self.per_kind})"

    def examples(self, lines: Lines, name: str) -> Iterator[Example]:
        """The split's examples, in the source's order; the id is the first 16 hex digits of the content's hash.

        Stops reading as soon as every kind has its number. ``name`` is the source, for errors.
        """
        seen: set[bytes] = set()
        for number, line in lines:
            kind, prompt = line["kind"], line["input"]
            check_kind(kind, name, number)
            if kind not in self.kinds or self.found[kind] == self.per_kind:
                continue
            digest = content_hash(kind, prompt)
            if self.split_of(digest) != self.split:
                continue
            if digest[:16] in seen:
                self.duplicates += 1
                continue
            seen.add(digest[:16])
            self.found[kind] += 1
            yield example(digest[:8].hex(), kind, prompt, line["target"])
            if self.per_kind is not None and all(self.found[k] == self.per_kind for k in self.kinds):
                return

    def split_of(self, digest: bytes) -> str:
        """The split of a content hash: bytes 8 to 16 as a number in [0, 1), cut at the shares (test, dev, the rest)."""
        place = int.from_bytes(digest[8:16]) / 2**64
        if place < self.test_share:
            return "test"
        return "dev" if place < self.test_share + self.dev_share else "train"


def folder_examples(folder: Folder, split: str, kinds: tuple[str, ...]) -> Iterator[Example]:
    """All examples of the chosen kinds in a split's file; the id is the split and the line (``test-17``)."""
    path = folder.file(split)
    for number, line in file_lines(path):
        check_kind(line["kind"], str(path), number)
        if line["kind"] in kinds:
            yield example(f"{split}-{number}", line["kind"], line["input"], line["target"])


def example(name: str, kind: str, prompt: str, target: str) -> Example:
    """One line as an example; choices are the labels that the prompt of a classifying kind offers."""
    choices = offered(kind, prompt) if kind in FAMILIES else None
    return Example(id=name, task=kind, prompt=prompt, target=target, choices=choices)


def check_kind(kind: str, name: str, number: int) -> None:
    """DataError for a kind that Firefly does not have."""
    if kind not in TASKS:
        raise DataError(
            f"{name}, line {number}: no kind of Firefly: {kind!r}.{nearest(kind, TASKS)} Known: {', '.join(TASKS)}."
        )


def locate(lines: Callable[[], Lines], ids: Iterable[str]) -> dict[str, int]:
    """The line of each content-hash id, by reading the source until all are found."""
    wanted = set(ids)
    places: dict[str, int] = {}
    for number, line in lines():
        if len(places) == len(wanted):
            break
        key = content_hash(line["kind"], line["input"])[:8].hex()
        if key in wanted:
            places.setdefault(key, number)
    return places


def check_split(split: str) -> None:
    """UsageError for a split that is none of train, dev, test."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
