"""Firefly: Chinese instructions of 23 kinds, of which eight have answers that can be checked."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import DataError, UsageError
from harness.task import Example, Suite, Task
from tasks.common.jsonl import HubDataset, build_dataset
from tasks.firefly import source as _source
from tasks.firefly.source import File, Folder, Selection
from tasks.firefly.tasks import CHECKABLE, TASKS, chosen

if TYPE_CHECKING:
    from datasets import Dataset

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Firefly(Suite):
    """Firefly from a folder of {train,dev,test}.jsonl, one file of JSON lines, or a hub id.

    kinds: the tasks; "all" for Firefly's 23; BELLE, a general set mixed into the published file, only by its name.
    per_kind: at most so many examples of a kind in each split, of a source without splits; None for no limit.
    dev_share, test_share: of a source without splits, the shares of contents that go to dev and test.
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
            raise UsageError(f"suite.kinds is empty. Name some of {', '.join(TASKS)}, or all")
        if self.per_kind is not None and self.per_kind < 1:
            raise UsageError(f"suite.per_kind = {self.per_kind}: at least 1 example, or none for no limit")
        if min(self.dev_share, self.test_share) < 0 or self.dev_share + self.test_share >= 1:
            raise UsageError(
                f"suite.dev_share = {self.dev_share}, suite.test_share = {self.test_share}: shares lie between 0 and 1 "
                "and must leave something to train on"
            )

    @cached_property
    def _kinds(self) -> tuple[str, ...]:
        return chosen(self.kinds)

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The chosen kinds."""
        return {name: TASKS[name] for name in self._kinds}

    def read(self, source: str, split: str) -> Dataset:
        """Read one split. Lines of kinds that were not chosen are passed over.

        Ids: split and line for a folder of split files, the content's hash otherwise. An input that occurs again in a
        source without splits is kept once; a folder's files are taken as they are.

        Raises: DataError for a source that cannot be read, a line that is none of Firefly's, a split without examples
            of the chosen kinds; UsageError for an unknown split.
        """
        _source.check_split(split)
        place = _source.find(_pinned(source))
        files = self._files(place, split)
        options: dict[str, Any] = {"kinds": list(self._kinds), "split": split}
        if not isinstance(place, Folder):
            options |= {"per_kind": self.per_kind, "dev_share": self.dev_share, "test_share": self.test_share}
        if isinstance(place, HubDataset):
            options["hub"] = place.name

        def rows() -> Iterator[Example]:
            if isinstance(place, Folder):
                return _some(_source.folder_examples(place, split, self._kinds), source, split)
            selection = self._selection(split)
            return _some(_told(selection, selection.examples(_lines(place), source)), source, split)

        return build_dataset(rows, reader=self.name, version=self.version, files=files, options=options)

    def splits(self, source: str) -> Sequence[str]:
        """The splits whose files a folder has; all that have a share for a source without splits."""
        place = _source.find(source)
        if isinstance(place, Folder):
            return tuple(split for split in _source.SPLITS if place.files(split))
        shares = {"train": 1.0, "dev": self.dev_share, "test": self.test_share}
        return tuple(split for split, share in shares.items() if share > 0)

    def pin(self, source: str) -> str:
        """A hub data set with its commit, ``id@commit``; a folder or a file as it is."""
        return _pinned(source)

    def fingerprint(self, source: str) -> Mapping[str, str]:
        """The sha256 of each local file or the commit of a hub data set; without splits, also the rule that makes them.

        Raises: DataError for a folder without split files.
        """
        place = _source.find(_pinned(source))
        if isinstance(place, Folder):
            if not self.splits(source):
                place.file("test")  # raises the error that says what the folder holds
            return super().fingerprint(source)
        split = {"split": self._selection("train").rule}
        if isinstance(place, HubDataset):
            return {"revision": str(place.revision), **split}
        return {**super().fingerprint(source), **split}

    def same_data(self, recorded: Mapping[str, str], found: Mapping[str, str]) -> bool:
        """Equal fingerprints. Of runs that recorded a sentence as their split, the other parts are compared.

        Those runs did not record the revision of hub data: any is accepted. Their predictions carry hashes of the
        prompts that they answer, so another revision is still noticed.
        """
        if recorded.get("split") not in _source.FORMER_RULES:
            return super().same_data(recorded, found)
        files = {part: value for part, value in found.items() if part not in ("split", "revision")}
        return {part: value for part, value in recorded.items() if part != "split"} == files

    def files(self, source: str) -> Sequence[Path]:
        """The split files of a folder, or the one file; none for a hub data set."""
        place = _source.find(source)
        if isinstance(place, Folder):
            return [place.file(split) for split in self.splits(source)]
        return [place.path] if isinstance(place, File) else []

    def locate(self, source: str, split: str, ids: Iterable[str]) -> Mapping[str, str]:
        """File and line of examples, by id; a hub data set is not read again for it."""
        place = _source.find(source)
        if isinstance(place, HubDataset):
            return {}
        if isinstance(place, Folder):
            path = place.file(split)
            return {key: f"{path}:{key.rpartition('-')[2]}" for key in ids}
        path = place.path
        lines = _source.locate(lambda: _source.file_lines(path), ids)
        return {key: f"{path}:{number}" for key, number in lines.items()}

    @property
    def sample(self) -> Path | None:
        """A few lines of each default kind, written for the purpose."""
        folder = Path(__file__).parents[1] / "sample" / "firefly"
        return folder if folder.is_dir() else None

    def describe(self, source: str) -> Mapping[str, Any]:
        """How the lines were split, capped and freed of duplicates; a file without splits is read once per split."""
        place = _source.find(source)
        how: dict[str, Any] = {"kinds": list(self._kinds)}
        if isinstance(place, Folder):
            return {**how, "split": "by the source's files"}
        how |= {
            "split": "by sha256 of kind and input: equal inputs share a split, equal contents in two templates may not",
            "dev_share": self.dev_share,
            "test_share": self.test_share,
            "per_kind": self.per_kind,
            "duplicates": "kept once",
        }
        if isinstance(place, File):
            how["duplicates_left_out"] = {split: self._duplicates(place, split) for split in self.splits(source)}
        return how

    def _files(self, place: Folder | File | HubDataset, split: str) -> list[Path]:
        if isinstance(place, Folder):
            return [place.file(split)]
        return [place.path] if isinstance(place, File) else []

    def _selection(self, split: str) -> Selection:
        return Selection(
            split=split,
            kinds=self._kinds,
            per_kind=self.per_kind,
            dev_share=self.dev_share,
            test_share=self.test_share,
        )

    def _duplicates(self, place: File, split: str) -> int:
        selection = self._selection(split)
        for _ in selection.examples(_lines(place), str(place.path)):
            pass
        return selection.duplicates


def _pinned(source: str) -> str:
    place = _source.find(source)
    return place.pinned().name if isinstance(place, HubDataset) else source


def _lines(place: File | HubDataset) -> _source.Lines:
    return _source.hub_lines(place) if isinstance(place, HubDataset) else _source.file_lines(place.path)


def _told(selection: Selection, examples: Iterator[Example]) -> Iterator[Example]:
    yield from examples
    if selection.duplicates:
        LOG.info("firefly %s: %d lines with an earlier line's input left out", selection.split, selection.duplicates)
    short = [k for k in selection.kinds if selection.per_kind is not None and selection.found[k] < selection.per_kind]
    if short:
        LOG.info("firefly %s: fewer than %s examples of %s", selection.split, selection.per_kind, ", ".join(short))


def _some(examples: Iterator[Example], source: str, split: str) -> Iterator[Example]:
    empty = True
    for example in examples:
        empty = False
        yield example
    if empty:
        raise DataError(f"{source}: not one line of the chosen kinds in {split}. Choose others: --set suite.kinds=...")
