"""Which rows a run uses and in which order: pure functions of the spec and the data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.task import Example, to_example

if TYPE_CHECKING:
    from datasets import Dataset

Indices = NDArray[np.int64]


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts, equal on every machine and in every process."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one split, grouped by task. by_task: positions in the data set, in the source's order."""

    split: str
    dataset: Dataset
    by_task: Mapping[str, Indices]

    def examples(self, indices: Sequence[int] | Indices) -> list[Example]:
        """Rows of the data set as examples."""
        if len(indices) == 0:
            return []
        columns = self.dataset[[int(i) for i in indices]]
        return [to_example({k: columns[k][i] for k in columns}) for i in range(len(indices))]

    def of(self, task: str) -> list[Example]:
        """All rows of a task."""
        return self.examples(self.by_task[task])

    @property
    def counts(self) -> dict[str, int]:
        return {task: len(indices) for task, indices in self.by_task.items()}


def group(dataset: Dataset, split: str, tasks: Sequence[str], per_task: int | None = None) -> Rows:
    """Group a split's rows by task.

    per_task keeps the rows whose ids have the smallest hashes: the same rows for every seed, and a smaller number is
    a subset of a larger one.
    """
    names = np.asarray(dataset.with_format(None)["task"], dtype=object)
    by_task = {}
    for task in tasks:
        indices = np.flatnonzero(names == task).astype(np.int64)
        if per_task is not None and len(indices) > per_task:
            ids = dataset.select(indices)["id"]
            order = sorted(range(len(indices)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())
            indices = np.sort(indices[order[:per_task]])
        by_task[task] = indices
    return Rows(split=split, dataset=dataset, by_task=by_task)


def without_targets(rows: Rows) -> bool:
    """True where every target of the split is blank, as in a published test file."""
    used = np.concatenate([np.zeros(0, np.int64), *rows.by_task.values()])
    return len(used) > 0 and not any(t.strip() for t in rows.dataset.select(used)["target"])


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Which examples each optimiser step sees: a stateless permutation of (seed, epoch), cut into batches.

    rows: positions in the training data set of all examples of the stage, tasks in the suite's order.
    """

    rows: Indices
    batch_size: int
    steps: int
    seed: int
    _orders: dict[int, Indices] = field(default_factory=dict, compare=False, repr=False)

    def batch(self, step: int) -> Indices:
        """The rows of step 0, 1, ...: batch_size of them, running on over the ends of epochs."""
        n = len(self.rows)
        stream = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.asarray([self.rows[self._order(int(i) // n)[int(i) % n]] for i in stream], dtype=np.int64)

    def _order(self, epoch: int) -> Indices:
        if epoch not in self._orders:
            self._orders.clear()
            generator = np.random.Generator(np.random.PCG64(stable_seed("order", self.seed, epoch)))
            self._orders[epoch] = generator.permutation(len(self.rows)).astype(np.int64)
        return self._orders[epoch]


def n_steps(n_rows: int, batch_size: int, epochs: float, steps: int | None) -> int:
    """Optimiser steps of the mixed run: as told, or enough for the epochs."""
    return steps if steps is not None else max(1, int(np.ceil(n_rows * epochs / batch_size - 1e-9)))


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """All training rows of a run, and the plan of any stage over some of its tasks."""

    rows: Rows
    batch_size: int
    steps: int
    seed: int

    @cached_property
    def total(self) -> int:
        return sum(self.rows.counts.values())

    def plan(self, tasks: Sequence[str] | None, share: float) -> StepPlan:
        """Stage over ``tasks`` (all): batch size in proportion to their share of the rows, ``share`` of the steps.

        Raises: DataError where those tasks have no rows at all.
        """
        chosen = list(self.rows.by_task) if tasks is None else [t for t in self.rows.by_task if t in set(tasks)]
        rows = np.concatenate([np.zeros(0, np.int64), *(self.rows.by_task[t] for t in chosen)])
        if len(rows) == 0:
            raise DataError(f"no training rows for {', '.join(chosen) or 'any task'}: choose other --tasks or --data")
        batch = max(1, round(self.batch_size * len(rows) / self.total))
        return StepPlan(rows=rows, batch_size=batch, steps=max(1, round(self.steps * share)), seed=self.seed)
