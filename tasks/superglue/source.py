"""Where SuperGLUE's examples are read from: a folder with a folder for each task, or a data set on the hub.

The folders have the official archive's layout (``BoolQ/train.jsonl``, ``BoolQ/val.jsonl``) or that of Parquet files
(``boolq/train-00000-of-00001.parquet``, ``boolq/validation/0000.parquet``). Files of the official test split have no
labels, so that they are never read: the validation files are the test split, and dev is a part of train.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.errors import DataError
from tasks.common.data_files import read_lines
from tasks.common.hub import HubDataset, hub_dataset
from tasks.superglue.items import Item, Line, items

TASKS: Final[tuple[str, ...]] = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")
CORRECTED_WSC: Final = "wsc.fixed"  # The data set on the hub has the words of WSC's spans corrected under this name.
_FILES: Final = {"train": "train", "dev": "train", "test": "validation"}
_LINES: Final = {"train": ("train.jsonl",), "validation": ("val.jsonl", "validation.jsonl")}
_PARQUET: Final = {
    "train": re.compile(r"(?:^|[/_-])train(?:[/._-]|$)"),
    "validation": re.compile(r"(?:^|[/_-])(?:validation|val)(?:[/._-]|$)"),
}


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder with the folders of tasks, by task; tasks without a folder are missing."""

    path: Path
    tasks: Mapping[str, Path]

    def files(self, task: str, split: str) -> list[Path]:
        """The files from which a split of a task is read; empty if it has none.

        Raises: DataError if there are files of two kinds.
        """
        folder, part = self.tasks.get(task), _FILES[split]
        if folder is None:
            return []
        lines = [path for name in _LINES[part] if (path := folder / name).is_file()]
        tables = sorted(
            path for path in folder.rglob("*.parquet") if _PARQUET[part].search(path.relative_to(folder).as_posix())
        )
        if len(lines) > 1 or (lines and tables):
            found = ", ".join(path.name for path in (*lines, *tables)[:4])
            raise DataError(f"{folder}: several files of the same split exist ({found}). Keep those of one kind")
        return lines or tables


def find(source: str) -> Folder | HubDataset:
    """The kind of a source.

    Raises: DataError if it is neither a folder with tasks nor a valid name on the hub.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path)
    hub = hub_dataset(source)
    # If the first part is a local folder, this is a misspelt path, and a request to the hub could take minutes.
    if hub is not None and not path.exists() and not path.parent.is_dir():
        return hub
    what = "this is a file" if path.exists() else "no such folder"
    raise DataError(
        f"{source}: {what}. SuperGLUE is read from a folder with a folder for each task ({', '.join(TASKS)}), or from "
        "the hub: --data aps/super_glue"
    )


def _folder(path: Path) -> Folder:
    by_name = {child.name.casefold(): child for child in sorted(path.iterdir()) if child.is_dir()}
    tasks = {task: by_name[task] for task in TASKS if task in by_name}
    if CORRECTED_WSC in by_name:
        tasks["wsc"] = by_name[CORRECTED_WSC]
    if not tasks:
        names = sorted(child.name for child in path.iterdir())
        content = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        hint = " Pass the folder above it" if path.name.casefold() in TASKS else " Check the path"
        raise DataError(
            f"{path}: no folder of a task ({', '.join(TASKS)}; upper case is the same). The folder contains "
            f"{content or 'no files'}.{hint}"
        )
    return Folder(path=path, tasks=tasks)


@dataclass(frozen=True, kw_only=True)
class Place:
    """An item with the place that it was read from, as "file:line"."""

    item: Item
    where: str


def placed_items(origin: Folder | HubDataset, task: str, split: str, dev_percent: int) -> Iterator[Place]:
    """The items of one task in a split, in the source's order.

    Raises: DataError for a source that cannot be read, or a line that is not in the task's format.
    """
    for line, file, number in _lines(origin, task, split):
        for item in items(task, line, f"{file}, line {number}"):
            if split == "test" or (split == "dev") == in_dev(item, dev_percent):
                yield Place(item=item, where=f"{file}:{number}")


def in_dev(item: Item, dev_percent: int) -> bool:
    """Whether an item of the train files is in the dev split, by a hash of its content.

    All items about one text are in the same split, whatever their order and the other items.
    """
    digest = hashlib.sha256(f"{item.task}\0{' '.join(item.content.split())}".encode()).digest()
    return int.from_bytes(digest[:8]) % 100 < dev_percent


def split_rule(dev_percent: int) -> str:
    """The name of the splitting rule, for fingerprints. Raise the number if other items would be in dev."""
    return f"content-hash-1(dev_percent={dev_percent})"


def _lines(origin: Folder | HubDataset, task: str, split: str) -> Iterator[tuple[Line, str, int]]:
    if isinstance(origin, HubDataset):
        for number, line in _hub_lines(origin, task, split):
            yield line, f"{origin.name} ({task})", number
        return
    for path in origin.files(task, split):
        for number, line in read_lines(path):
            yield line, str(path), number


def _hub_lines(origin: HubDataset, task: str, split: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The lines of one task on the hub at the source's revision, streamed."""
    from datasets import load_dataset

    config, number = CORRECTED_WSC if task == "wsc" else task, 0
    try:
        stream = load_dataset(origin.id, config, revision=origin.revision, split=_FILES[split], streaming=True)
        for number, line in enumerate(stream, 1):
            yield number, line
    except (OSError, ValueError) as error:
        raise DataError(
            f"{origin.name}: no such local folder exists, and line {number + 1} of {config!r} of the data set on the "
            f"hub cannot be read ({type(error).__name__}: {error}). Check the name, or download the files and pass "
            "their folder to --data"
        ) from error
