"""The SuperGLUE suite: eight English tasks as text generation, from local files or the hub."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from harness.errors import DataError, UsageError, unknown
from harness.task import SPLITS, Example, Suite, Task
from tasks.common.hub import HubDataset
from tasks.common.jsonl import build_dataset
from tasks.superglue.prompts import examples
from tasks.superglue.source import TASKS, Folder, find, placed_items, split_rule
from tasks.superglue.tasks import tasks_of

if TYPE_CHECKING:
    from datasets import Dataset

LOG: Final = logging.getLogger(__name__)
_LARGEST_SHARE: Final = 50  # More would leave fewer examples for training than for choosing hyper-parameters.


@dataclass(frozen=True, kw_only=True)
class SuperGLUE(Suite):
    """SuperGLUE (Wang et al. 2019) from a folder with a folder for each task, or from the hub (aps/super_glue).

    format: how questions are asked and answered: letters (of options, as in PEFT's notebook on Poly), t5, or lm-eval.
    dev_percent: the share of the train files, by their texts, that is the dev split.
    """

    name: ClassVar[str] = "superglue"
    version: ClassVar[int] = 1

    format: str = "letters"
    dev_percent: int = 10

    def __post_init__(self) -> None:
        tasks_of(self.format)  # raises the error for an unknown format
        if not 0 <= self.dev_percent <= _LARGEST_SHARE:
            raise UsageError(
                f"suite.dev_percent = {self.dev_percent}: must be from 0 (no dev split) to {_LARGEST_SHARE}"
            )

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The eight tasks, in the order of the benchmark's table."""
        return tasks_of(self.format)

    def read(self, source: str, split: str) -> Dataset:
        """Read one split of all tasks that the source has. The official validation files are the test split.

        Raises: DataError for a source that cannot be read, a line that is not in its task's format, or a split
            without examples.
        """
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        origin = find(self.pin(source))
        options: dict[str, Any] = {"format": self.format, "split": split, "dev_percent": self.dev_percent}
        if isinstance(origin, HubDataset):
            options["hub"] = origin.name
        return build_dataset(
            lambda: self._examples(origin, source, split),
            reader=self.name,
            version=self.version,
            files=_files(origin, [split]),
            options=options,
        )

    def splits(self, source: str) -> Sequence[str]:
        """The splits that some task has files for; dev is a part of train."""
        origin = find(source)
        wanted = [split for split in SPLITS if split != "dev" or self.dev_percent > 0]
        if isinstance(origin, HubDataset):
            return tuple(wanted)
        return tuple(split for split in wanted if _files(origin, [split]))

    def pin(self, source: str) -> str:
        """A data set on the hub as ``id@commit``; a local path unchanged."""
        origin = find(source)
        return origin.pinned().name if isinstance(origin, HubDataset) else source

    def fingerprint(self, source: str) -> Mapping[str, str]:
        """The sha256 of each local file, or the commit on the hub, and the rule that splits off dev.

        Raises: DataError for a folder without files of a split.
        """
        rule = {"split": split_rule(self.dev_percent)}
        origin = find(self.pin(source))
        if isinstance(origin, HubDataset):
            return {"revision": str(origin.revision), **rule}
        if not self.files(source):
            raise _no_files(origin)
        return {**super().fingerprint(source), **rule}

    def files(self, source: str) -> Sequence[Path]:
        """The train and validation files of all tasks; none for a data set on the hub."""
        return _files(find(source), ["train", "test"])

    def locate(self, source: str, split: str, ids: Iterable[str]) -> Mapping[str, str]:
        """File and line of examples by id; nothing for a data set on the hub, which is not read again."""
        origin, wanted = find(source), set(ids)
        if isinstance(origin, HubDataset) or not wanted:
            return {}
        return {
            example.id: place.where
            for task in {id_.partition("-")[0] for id_ in wanted} & set(TASKS)
            for place in placed_items(origin, task, split, self.dev_percent)
            for example in examples(place.item, self.format, train=split == "train")
            if example.id in wanted
        }

    @property
    def sample(self) -> Path | None:
        """The folder of the embedded sample, which has a few invented items of each task."""
        folder = Path(__file__).parents[1] / "sample" / self.name
        return folder if folder.is_dir() else None

    def describe(self, source: str) -> Mapping[str, Any]:
        """The format, and what the splits are."""
        return {
            "format": self.format,
            "test": "the official validation files, because the official test files have no labels",
            "dev": f"{self.dev_percent} % of the train files by sha256 of the text: questions about one text share a "
            "split",
        }

    def _examples(self, origin: Folder | HubDataset, source: str, split: str) -> Iterator[Example]:
        counts: Counter[str] = Counter()
        for task in TASKS:
            for place in placed_items(origin, task, split, self.dev_percent):
                for example in examples(place.item, self.format, train=split == "train"):
                    counts[task] += 1
                    yield example
        if not counts:
            if isinstance(origin, Folder) and not _files(origin, [split]):
                raise _no_files(origin)
            raise DataError(f"{source}: no examples in the {split} split. Check the files, or suite.dev_percent")
        missing = [task for task in TASKS if not counts[task]]
        if missing:
            LOG.info("superglue %s: no examples of %s", split, ", ".join(missing))


def _files(origin: Folder | HubDataset, splits: Sequence[str]) -> list[Path]:
    """The files of the splits, each once; none for a data set on the hub."""
    if isinstance(origin, HubDataset):
        return []
    found = [file for task in TASKS for split in splits for file in origin.files(task, split)]
    return list(dict.fromkeys(found))


def _no_files(origin: Folder) -> DataError:
    folders = ", ".join(sorted(path.name for path in origin.tasks.values()))
    return DataError(
        f"{origin.path}: no files in {folders}. Each needs train.jsonl and val.jsonl, or Parquet files whose names "
        "contain train and validation"
    )
