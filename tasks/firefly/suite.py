"""The Firefly suite: Chinese instructions of 23 kinds, of which eight have answers that can be checked."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import DataError, UsageError
from harness.task import SPLITS, Example, Suite, Task, UnlabelledExample
from tasks.common.hub import HubDataset
from tasks.common.jsonl import build_dataset
from tasks.firefly.source import (
    FORMER_RULES,
    File,
    Folder,
    Lines,
    Selection,
    check_split,
    file_lines,
    find,
    folder_examples,
    hub_lines,
    line_numbers,
    unlabelled,
)
from tasks.firefly.tasks import CHECKABLE, TASKS, chosen

if TYPE_CHECKING:
    from datasets import Dataset

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Firefly(Suite):
    """Firefly from a folder with {train,dev,test}.jsonl, one file of JSON lines, or a data set on the hub.

    kinds: the kinds that are tasks of the suite; "all" for Firefly's 23. BELLE, a general data set mixed into the
        published file, must be named explicitly.
    per_kind, dev_share, test_share: how a source without splits is divided. per_kind is the maximum number of examples
        of each kind in a split (None for no limit), the others are the shares of the dev and test splits.
    """

    name: ClassVar[str] = "firefly"
    version: ClassVar[int] = 1
    default_model: ClassVar[str | None] = "tiny"

    kinds: tuple[str, ...] = CHECKABLE
    per_kind: int | None = 2000
    dev_share: float = 0.05
    test_share: float = 0.1

    def __post_init__(self) -> None:
        if not chosen(self.kinds):
            raise UsageError(f"suite.kinds is empty. Choose from {', '.join(TASKS)}, or use all")
        if self.per_kind is not None and self.per_kind < 1:
            raise UsageError(f"suite.per_kind = {self.per_kind}: must be at least 1, or none for no limit")
        if min(self.dev_share, self.test_share) < 0 or self.dev_share + self.test_share >= 1:
            raise UsageError(
                f"suite.dev_share = {self.dev_share}, suite.test_share = {self.test_share}: each share must be between "
                "0 and 1, and their sum must be below 1, so that examples are left for training"
            )

    @cached_property
    def _kinds(self) -> tuple[str, ...]:
        return chosen(self.kinds)

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The chosen kinds."""
        return {name: TASKS[name] for name in self._kinds}

    def read(self, source: str, split: str) -> Dataset:
        """Read one split, without the lines of Firefly's other kinds than the chosen ones.

        In a folder of split files, an id is the split and the line number, and all lines are read. Otherwise an id is
        the content hash, and duplicates are read once.

        Raises: DataError for a source that cannot be read, a line that is not in Firefly's format, or a split without
            examples of the chosen kinds; UsageError for an unknown split.
        """
        check_split(split)
        origin = find(_pinned(source))
        files = self._files(origin, split)
        options: dict[str, Any] = {"kinds": list(self._kinds), "split": split}
        if not isinstance(origin, Folder):
            options |= {"per_kind": self.per_kind, "dev_share": self.dev_share, "test_share": self.test_share}
        if isinstance(origin, HubDataset):
            options["hub"] = origin.name

        def examples() -> Iterator[Example]:
            if isinstance(origin, Folder):
                return _require_examples(folder_examples(origin, split, self._kinds), source, split)
            selection = self._selection(split)
            selected = _report_omissions(selection, selection.examples(_lines(origin), source))
            return _require_examples(selected, source, split)

        return build_dataset(examples, reader=self.name, version=self.version, files=files, options=options)

    def splits(self, source: str) -> Sequence[str]:
        """The splits that a folder has files for; for a source without splits, those with a share above 0."""
        origin = find(source)
        if isinstance(origin, Folder):
            return tuple(split for split in SPLITS if origin.files(split))
        shares = {"train": 1.0, "dev": self.dev_share, "test": self.test_share}
        return tuple(split for split, share in shares.items() if share > 0)

    def pin(self, source: str) -> str:
        """A data set on the hub as ``id@commit``; a local path unchanged."""
        return _pinned(source)

    def fingerprint(self, source: str) -> Mapping[str, str]:
        """The sha256 of each local file, or the commit on the hub; for a source without splits also the splitting rule.

        Raises: DataError for a folder without split files.
        """
        origin = find(_pinned(source))
        if isinstance(origin, Folder):
            if not self.splits(source):
                origin.file("test")  # raises the error that lists the folder's files
            return super().fingerprint(source)
        split = {"split": self._selection("train").rule}
        if isinstance(origin, HubDataset):
            return {"revision": str(origin.revision), **split}
        return {**super().fingerprint(source), **split}

    def same_data(self, recorded: Mapping[str, str], present: Mapping[str, str]) -> bool:
        """Whether the fingerprints are equal, apart from the parts that earlier runs recorded in another form.

        Earlier runs recorded a sentence as their split and no revision of a data set on the hub. For them any revision
        is accepted; their predictions have hashes of the prompts, so that another revision is still noticed.
        """
        if recorded.get("split") not in FORMER_RULES:
            return super().same_data(recorded, present)
        files = {part: value for part, value in present.items() if part not in ("split", "revision")}
        return {part: value for part, value in recorded.items() if part != "split"} == files

    def files(self, source: str) -> Sequence[Path]:
        """The split files of a folder, or the one file; none for a data set on the hub."""
        origin = find(source)
        if isinstance(origin, Folder):
            return [origin.file(split) for split in self.splits(source)]
        return [origin.path] if isinstance(origin, File) else []

    def read_unlabelled(self, path: Path, task: str | None) -> Iterator[UnlabelledExample]:
        """JSON lines or an array with ``input``; ``kind`` may be missing. An id is the file's name and the number."""
        return unlabelled(path)

    def locate(self, source: str, split: str, ids: Iterable[str]) -> Mapping[str, str]:
        """File and line of examples by id; nothing for a data set on the hub, which is not read again."""
        origin = find(source)
        if isinstance(origin, HubDataset):
            return {}
        if isinstance(origin, Folder):
            path = origin.file(split)
            return {key: f"{path}:{key.rpartition('-')[2]}" for key in ids}
        path = origin.path
        lines = line_numbers(lambda: file_lines(path), ids)
        return {key: f"{path}:{number}" for key, number in lines.items()}

    @property
    def sample(self) -> Path | None:
        """The folder of the embedded sample, which has a few lines of each default kind."""
        folder = Path(__file__).parents[1] / "sample" / "firefly"
        return folder if folder.is_dir() else None

    def describe(self, source: str) -> Mapping[str, Any]:
        """How the lines were split, limited and deduplicated; a file without splits is read once for each split."""
        origin = find(source)
        how: dict[str, Any] = {"kinds": list(self._kinds)}
        if isinstance(origin, Folder):
            return {**how, "split": "by the source's files"}
        how |= {
            "split": "by sha256 of kind and input: equal inputs share a split, equal contents in two templates may not",
            "dev_share": self.dev_share,
            "test_share": self.test_share,
            "per_kind": self.per_kind,
            "duplicates": "kept once",
        }
        if isinstance(origin, File):
            how["duplicates_left_out"] = {split: self._duplicates(origin, split) for split in self.splits(source)}
        return how

    def _files(self, origin: Folder | File | HubDataset, split: str) -> list[Path]:
        if isinstance(origin, Folder):
            return [origin.file(split)]
        return [origin.path] if isinstance(origin, File) else []

    def _selection(self, split: str) -> Selection:
        return Selection(
            split=split,
            kinds=self._kinds,
            per_kind=self.per_kind,
            dev_share=self.dev_share,
            test_share=self.test_share,
        )

    def _duplicates(self, origin: File, split: str) -> int:
        selection = self._selection(split)
        for _ in selection.examples(_lines(origin), str(origin.path)):
            pass
        return selection.duplicates


def _pinned(source: str) -> str:
    origin = find(source)
    return origin.pinned().name if isinstance(origin, HubDataset) else source


def _lines(origin: File | HubDataset) -> Lines:
    return hub_lines(origin) if isinstance(origin, HubDataset) else file_lines(origin.path)


def _report_omissions(selection: Selection, examples: Iterator[Example]) -> Iterator[Example]:
    """Pass the examples on, then log how many duplicates were left out and which kinds have few examples."""
    yield from examples
    if selection.duplicates:
        LOG.info("firefly %s: left out %d lines whose input occurs earlier", selection.split, selection.duplicates)
    few = [k for k in selection.kinds if selection.per_kind is not None and selection.counts[k] < selection.per_kind]
    if few:
        LOG.info("firefly %s: fewer than %s examples of %s", selection.split, selection.per_kind, ", ".join(few))


def _require_examples(examples: Iterator[Example], source: str, split: str) -> Iterator[Example]:
    """Pass the examples on, and raise a DataError if there were none."""
    empty = True
    for example in examples:
        empty = False
        yield example
    if empty:
        raise DataError(
            f"{source}: no example of the chosen kinds in split {split!r}. Choose other kinds: --set suite.kinds=..."
        )
