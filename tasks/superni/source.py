"""A copy of natural-instructions: the files of its tasks, and the lists of tasks that are trained and held out."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.errors import DataError, UsageError, nearest, unknown
from tasks.superni.scoring import UNKNOWN_CATEGORY
from tasks.superni.task_file import read_header

LOG: Final = logging.getLogger(__name__)
REPOSITORY: Final = "https://github.com/allenai/natural-instructions"
_DEFAULT_SPLIT: Final = "default"
_NAME: Final = re.compile(r"task(\d+)_\w.*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The tasks of a folder by name, in the order of their numbers, and the folder of the lists (None without one)."""

    files: Mapping[str, Path]
    lists: Path | None


@dataclass(frozen=True, kw_only=True)
class TaskList:
    """Which tasks of a source are used. The fields are options of the suite, which describes them.

    only: these tasks, whatever the lists say. split: the folder of the lists. n_train_tasks, n_test_tasks, seed: how
    many tasks are drawn from the lists, and from which seed.
    """

    only: tuple[str, ...]
    split: str
    n_train_tasks: int | None
    n_test_tasks: int | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class ChosenTasks:
    """categories: of each task by name, in the order of tables. held_out: the tasks that are not trained on."""

    categories: Mapping[str, str]
    held_out: tuple[str, ...]


def open_source(source: str) -> Source:
    """The tasks of a folder in the layout of natural-instructions, of a folder of task files, or of one file.

    Raises: DataError if there are none.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return Source(files={path.stem: path}, lists=None)
    if not path.is_dir():
        raise DataError(
            f"{source}: no such folder or file. Super-NaturalInstructions is read from a copy of {REPOSITORY}: "
            f"git clone {REPOSITORY}, then give the folder. Mirrors on the hub are not read, because they lack the "
            "categories and examples of the tasks"
        )
    folder = path / "tasks" if (path / "tasks").is_dir() else path
    files = {file.stem: file for file in folder.glob("task*.json") if _NAME.fullmatch(file.stem)}
    if not files:
        raise DataError(
            f"{folder}: the folder has no files taskNUMBER_NAME.json. Give a copy of {REPOSITORY}, or a folder of its "
            "task files"
        )
    lists = path / "splits"
    return Source(files={name: files[name] for name in _ordered(files)}, lists=lists if lists.is_dir() else None)


def choose(source: str, wanted: TaskList) -> ChosenTasks:
    """The tasks that the options choose, with the category of each; tasks for training come first.

    Raises: DataError for a list or a task's file that is missing; UsageError for an option that does not fit.
    """
    found = open_source(source)
    train, test = _lists(found, wanted.split)
    if wanted.only:
        _check_known(wanted.only, found, source)
        held_out = [name for name in _ordered(wanted.only) if name in set(test)]
        names = [name for name in _ordered(wanted.only) if name not in held_out] + held_out
        return _with_categories(names, held_out, found, explicit=True)
    names = drawn(train, wanted.n_train_tasks, wanted.seed, "suite.n_train_tasks")
    held_out = drawn(test, wanted.n_test_tasks, wanted.seed, "suite.n_test_tasks")
    chosen = [*_ordered(names), *_ordered(held_out)]
    absent = [name for name in chosen if name not in found.files]
    if absent and (wanted.n_train_tasks is not None or wanted.n_test_tasks is not None):
        raise DataError(
            f"{source}: the file {absent[0]}.json is missing for a task that the lists of {wanted.split} name "
            f"(drawn tasks without a file: {len(absent)}). Copy the whole repository, or name tasks with --set "
            "suite.only=A,B"
        )
    if absent:
        LOG.warning("tasks of the lists without a file are left out: %s", _some(absent))
    chosen = [name for name in chosen if name in found.files]
    if not chosen:
        raise DataError(f"{source}: no task of splits/{wanted.split} has a file. Copy the whole repository")
    return _with_categories(chosen, held_out, found, explicit=False)


def drawn(names: Sequence[str], n: int | None, seed: int, option: str) -> list[str]:
    """The n names with the smallest hashes: the same ones in any order of the list, and a subset of any larger draw.

    Raises: UsageError if there are fewer names than n.
    """
    if n is None:
        return list(names)
    if n > len(names):
        raise UsageError(f"{option} = {n}: the list has {len(names)}. Choose at most that many")
    return sorted(names, key=lambda name: draw_key(name, seed))[:n]


def draw_key(name: str, seed: int) -> str:
    """The hash by which tasks are drawn: the sha256 of seed and name, in hexadecimal."""
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def _lists(found: Source, split: str) -> tuple[list[str], list[str]]:
    """The tasks to train on and the held-out ones. Without lists, every task is trained on."""
    folder = None if found.lists is None else found.lists / split
    if folder is None or not folder.is_dir():
        known = [] if found.lists is None else sorted(p.name for p in found.lists.iterdir() if p.is_dir())
        if known or split != _DEFAULT_SPLIT:
            raise unknown("suite.split", split, known, see=str(found.lists or "splits/ of the data"))
        return list(found.files), []
    train, test = (_names(folder / f"{part}_tasks.txt") for part in ("train", "test"))
    both = [name for name in train if name in set(test)]
    if both:
        raise DataError(f"{folder}: {both[0]} is in train_tasks.txt and in test_tasks.txt. Remove it from one of them")
    return train, test


def _names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list of tasks cannot be read ({error}). Copy it from {REPOSITORY}") from error
    names = [line.strip().removesuffix(".json") for line in lines]
    return list(dict.fromkeys(name for name in names if name))


def _check_known(names: Iterable[str], found: Source, source: str) -> None:
    for name in names:
        if name not in found.files:
            number = f"{name.partition('_')[0]}_"
            known = [other for other in found.files if other.startswith(number)] or found.files
            hint = nearest(name, known) or f" It has {', '.join(list(known)[:3])}, …"
            raise UsageError(f"suite.only: {source} has no task {name!r}.{hint}")


def _with_categories(names: Sequence[str], held_out: Sequence[str], found: Source, *, explicit: bool) -> ChosenTasks:
    """The tasks with English answers. Raises: UsageError for another one that was named explicitly."""
    headers = {name: read_header(found.files[name]) for name in names}
    foreign = [name for name, header in headers.items() if not header.english]
    why = "their answers are not English, and ROUGE with Porter's stemmer counts English words only"
    if foreign and (explicit or len(foreign) == len(names)):
        raise UsageError(f"suite.only: {_some(foreign)} cannot be scored, because {why}. Leave them out")
    if foreign:
        LOG.warning("left out, because %s: %s (number of tasks: %d)", why, _some(foreign), len(foreign))
    kept = [name for name in names if headers[name].english]
    return ChosenTasks(
        categories={name: headers[name].category or UNKNOWN_CATEGORY for name in kept},
        held_out=tuple(name for name in kept if name in set(held_out)),
    )


def _ordered(names: Iterable[str]) -> list[str]:
    """Names by the number in them; a file of one task may have any name."""
    return sorted(dict.fromkeys(names), key=lambda name: (int(m[1]) if (m := _NAME.fullmatch(name)) else 0, name))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
