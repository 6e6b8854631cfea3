"""Which rows a run uses and in which order: pure functions of the spec and the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from harness.data.rows import Indices, Rows
from harness.errors import DataError
from harness.seeding import stable_seed


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Which examples each optimiser step sees: one stream of examples, cut into batches; nothing depends on the past.

    The stream is made of epochs as long as all rows together. Each epoch holds every task by its share, in an order
    drawn by (seed, epoch). A task's rows come in passes over all of them, each in an order drawn by (seed, task, pass);
    where the share is the task's own number of rows an epoch is one pass over everything.

    rows: positions in the training data set, by task. shares: of each task, positive, summing to 1.
    """

    rows: Mapping[str, Indices]
    shares: Mapping[str, float]
    batch_size: int
    steps: int
    seed: int
    _epochs: dict[int, Indices] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def n_rows(self) -> int:
        """The length of an epoch."""
        return sum(map(len, self.rows.values()))

    def batch(self, step: int) -> Indices:
        """The rows of step 0, 1, ...: batch_size of them, running on over the ends of epochs."""
        stream = range(step * self.batch_size, (step + 1) * self.batch_size)
        return np.asarray([self._epoch(i // self.n_rows)[i % self.n_rows] for i in stream], dtype=np.int64)

    @cached_property
    def quotas(self) -> dict[str, int]:
        """How many examples of each task an epoch holds: shares rounded down, the rest to the largest remainders."""
        exact = {task: self.n_rows * share for task, share in self.shares.items()}
        whole = {task: int(np.floor(x + 1e-9)) for task, x in exact.items()}
        left = self.n_rows - sum(whole.values())
        for task in sorted(exact, key=lambda t: (whole[t] - exact[t], t))[:left]:
            whole[task] += 1
        return whole

    def _epoch(self, epoch: int) -> Indices:
        if epoch not in self._epochs:
            self._epochs.clear()
            parts = [self._stream(task, epoch * n, (epoch + 1) * n) for task, n in self.quotas.items()]
            order = _generator("order", self.seed, epoch).permutation(self.n_rows)
            self._epochs[epoch] = np.concatenate(parts)[order]
        return self._epochs[epoch]

    def _stream(self, task: str, first: int, last: int) -> Indices:
        """Examples first .. last - 1 of a task's endless passes."""
        rows = self.rows[task]
        passes = range(first // len(rows), -(-last // len(rows)))
        parts = [rows[_generator("pass", self.seed, task, n).permutation(len(rows))] for n in passes]
        return np.concatenate([np.zeros(0, np.int64), *parts])[first - passes.start * len(rows) :][: last - first]


def _generator(*key: object) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(stable_seed(*key)))


def n_steps(n_rows: int, batch_size: int, epochs: float, steps: int | None) -> int:
    """Optimiser steps of the mixed run: as told, or enough for the epochs."""
    return steps if steps is not None else max(1, int(np.ceil(n_rows * epochs / batch_size - 1e-9)))


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """All training rows of a run, and the plan of any stage over some of its tasks.

    temperature: at least 1. A task's share of the examples is in proportion to its number of rows to the power
        1 / temperature: 1 proportional, infinity uniform. A task without rows has no share.
    """

    rows: Rows
    batch_size: int
    steps: int
    seed: int
    temperature: float = 1.0

    @cached_property
    def shares(self) -> dict[str, float]:
        """Each task's share of the examples of the mixed run."""
        weights = {t: n ** (1 / self.temperature) if n else 0.0 for t, n in self.rows.counts.items()}
        return {t: w / (sum(weights.values()) or 1.0) for t, w in weights.items()}

    @cached_property
    def total(self) -> int:
        return sum(self.rows.counts.values())

    def plan(self, tasks: Sequence[str] | None, share: float) -> StepPlan:
        """Stage over ``tasks`` (all): the batch size is their share of the mixed one, ``share`` of the steps.

        Raises: DataError where those tasks have no rows at all.
        """
        chosen = list(self.rows.by_task) if tasks is None else [t for t in self.rows.by_task if t in set(tasks)]
        rows = {t: self.rows.by_task[t] for t in chosen if len(self.rows.by_task[t])}
        if not rows:
            raise DataError(f"no training rows for {', '.join(chosen) or 'any task'}: choose other --tasks or --data")
        part = sum(self.shares[t] for t in rows)
        return StepPlan(
            rows=rows,
            shares={t: self.shares[t] / part for t in rows},
            batch_size=max(1, round(self.batch_size * part)),
            steps=max(1, round(self.steps * share)),
            seed=self.seed,
        )
