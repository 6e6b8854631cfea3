"""Examples of a split that are never used: those of tasks that the suite does not have, and those without a target."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError, nearest
from harness.reporting.numbers import counted
from harness.task import Suite

if TYPE_CHECKING:
    from datasets import Dataset

LOG: Final = logging.getLogger(__name__)
_BATCH: Final = 10_000  # examples


def task_names(dataset: Dataset) -> NDArray[np.object_]:
    """The task of each example, (n,)."""
    return np.asarray(dataset.with_format(None)["task"][:], dtype=object)


def has_target(dataset: Dataset) -> NDArray[np.bool_]:
    """Which examples have a target that is not blank, (n,); the targets are read in batches."""
    found = np.zeros(len(dataset), np.bool_)
    if "target" not in dataset.column_names:
        return found
    targets = dataset.with_format(None).select_columns("target")
    for start in range(0, len(dataset), _BATCH):
        batch = targets[start : start + _BATCH]["target"]
        found[start : start + len(batch)] = [bool(text and text.strip()) for text in batch]
    return found


def other_tasks(suite: Suite, source: str, split: str, dataset: Dataset, *, strict: bool) -> dict[str, int]:
    """The number of examples of each task that the suite does not have.

    Args: strict: they are an error, unless the suite names the task in ``Suite.other_tasks``.
    Raises: DataError naming the first example, with its place and the nearest name.
    """
    names = task_names(dataset)
    counts = Counter(str(name) for name in names[~np.isin(names, list(suite.tasks))])
    unknown = [name for name in counts if name not in suite.other_tasks]
    if strict and unknown:
        name = unknown[0]
        first = str(dataset[int(np.flatnonzero(names == name)[0])]["id"])
        hint = nearest(name, suite.tasks) or f" Known: {', '.join(suite.tasks)}."
        raise DataError(
            f"{place(suite, source, split, first)}: suite {suite.name} has no task {name!r}.{hint} Correct the task, "
            "remove the line, or choose tasks with --tasks, so that lines of unknown tasks are left out"
        )
    return dict(counts)


def other_tasks_note(split: str, counts: Mapping[str, int], suite: str) -> str:
    """One line that counts the examples of tasks that the suite does not have."""
    of = ", ".join(f"{name} {n}" for name, n in counts.items())
    n = sum(counts.values())
    return f"{split}: {counted(n, 'example')} of tasks that {suite} does not have left out ({of})"


def blank_note(split: str, counts: Mapping[str, int], first: str) -> str:
    """One line that counts the examples without a target, by task. first: the place of the first of them."""
    n = sum(counts.values())
    of = ", ".join(f"{task} {k}" for task, k in counts.items() if k)
    at = f"the first is {first}" if n > 1 else first
    return f"{split}: {counted(n, 'example')} without a target left out ({of}); {at}"


def no_target(suite: Suite, source: str, split: str, first: str, hint: str = "") -> DataError:
    """The error for a split of which no example has a target. first: the id of one of its examples."""
    return DataError(
        f"{place(suite, source, split, first)}: no example of the {split} split has a target, this one included. "
        f"Add the targets{hint}"
    )


def place(suite: Suite, source: str, split: str, example: str) -> str:
    """Where an example is in the source, as "file, line 3" if the suite can locate it."""
    where = suite.locate(source, split, [example]).get(example)
    if where is None:
        return f"{source}, {split} example {example!r}"
    file, _, line = where.rpartition(":")
    return f"{file}, line {line}" if file and line.isdigit() else where


def of_tasks(dataset: Dataset, tasks: Sequence[str]) -> Dataset:
    """The examples of some tasks, in the same order."""
    names = task_names(dataset)
    chosen = np.isin(names, list(tasks))
    return dataset if chosen.all() else dataset.select(np.flatnonzero(chosen))
