"""The training examples of a run and their order: pure functions of the spec and the data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from harness.data.splits import Indices, SplitExamples
from harness.errors import DataError
from harness.seeding import stable_seed


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The training examples of each optimiser step: one stream of examples, divided into steps as evenly as possible.

    The stream is a sequence of epochs, each as long as all examples together. An epoch holds each task by its share, in
    an order drawn by (seed, epoch). A task's examples come in passes over all of them, each in an order drawn by (seed,
    task, pass). Where a task's share is its share of the examples, an epoch is one pass over everything. No batch
    depends on the batches before it, so that a resumed run continues with the same examples.

    examples: by task, positions in the training data set. shares: by task; positive, with sum 1. total: the number of
    examples of all steps together.
    """

    examples: Mapping[str, Indices]
    shares: Mapping[str, float]
    total: int
    steps: int
    seed: int
    _epochs: dict[int, Indices] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def n_examples(self) -> int:
        """The length of an epoch."""
        return sum(map(len, self.examples.values()))

    def batch(self, step: int) -> Indices:
        """Positions of the examples of a step, counted from 0; a batch may span two epochs."""
        stream = range(self.total * step // self.steps, self.total * (step + 1) // self.steps)
        return np.asarray([self._epoch(i // self.n_examples)[i % self.n_examples] for i in stream], dtype=np.int64)

    def drawn(self, tasks: Collection[str]) -> int:
        """How many of the plan's examples are of these tasks."""
        epochs, rest = divmod(self.total, self.n_examples)
        members = np.concatenate([np.zeros(0, np.int64), *(self.examples[t] for t in self.examples if t in tasks)])
        in_part = int(np.isin(self._epoch(epochs)[:rest], members).sum()) if rest else 0
        return epochs * sum(self.quotas[t] for t in self.examples if t in tasks) + in_part

    @cached_property
    def quotas(self) -> dict[str, int]:
        """Examples of each task in an epoch: shares rounded down, and the rest to the largest remainders."""
        exact = {task: self.n_examples * share for task, share in self.shares.items()}
        whole = {task: int(np.floor(x + 1e-9)) for task, x in exact.items()}
        left = self.n_examples - sum(whole.values())
        for task in sorted(exact, key=lambda t: (whole[t] - exact[t], t))[:left]:
            whole[task] += 1
        return whole

    def _epoch(self, epoch: int) -> Indices:
        if epoch not in self._epochs:
            self._epochs.clear()
            parts = [self._stream(task, epoch * n, (epoch + 1) * n) for task, n in self.quotas.items()]
            order = _generator("order", self.seed, epoch).permutation(self.n_examples)
            self._epochs[epoch] = np.concatenate(parts)[order]
        return self._epochs[epoch]

    def _stream(self, task: str, first: int, last: int) -> Indices:
        """Examples ``first`` to ``last - 1`` of a task, counted over all its passes."""
        own = self.examples[task]
        passes = range(first // len(own), -(-last // len(own)))
        parts = [own[_generator("pass", self.seed, task, n).permutation(len(own))] for n in passes]
        return np.concatenate([np.zeros(0, np.int64), *parts])[first - passes.start * len(own) :][: last - first]


def _generator(*key: object) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(stable_seed(*key)))


def n_steps(n_examples: int, batch_size: int, epochs: float, steps: int | None) -> int:
    """Optimiser steps of a run over all its tasks: ``steps`` where it is given, otherwise enough for the epochs."""
    return steps if steps is not None else max(1, int(np.ceil(n_examples * epochs / batch_size - 1e-9)))


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """All training examples of a run, and the step plan of any stage over some of its tasks.

    steps: optimiser steps of the whole run.
    temperature: at least 1. A task's share of the examples is proportional to its number of examples to the power
        1 / temperature: 1 is proportional sampling, infinity is uniform. A task without examples has no share.
    """

    examples: SplitExamples
    batch_size: int
    steps: int
    seed: int
    temperature: float = 1.0

    @cached_property
    def shares(self) -> dict[str, float]:
        """Each task's share of the examples in a stage over all tasks."""
        weights = {t: n ** (1 / self.temperature) if n else 0.0 for t, n in self.examples.counts.items()}
        return {t: w / (sum(weights.values()) or 1.0) for t, w in weights.items()}

    def plan(self, tasks: Sequence[str] | None, share: float) -> StepPlan:
        """The step plan of a stage: it has exactly as many examples of its tasks as a stage over all tasks would have.

        Args:
            tasks: whose examples are used (default all).
            share: the share of the run's steps that the stage gets. A stage with fewer examples than steps has one step
                for each of its examples.

        Raises: DataError if none of the tasks has training examples.
        """
        steps = max(1, round(self.steps * share))
        whole = self._plan(list(self.examples.by_task), self.batch_size * steps, steps)
        if tasks is None or set(whole.examples) <= set(tasks):
            return whole
        total = max(1, whole.drawn(set(tasks)))
        return self._plan([t for t in self.examples.by_task if t in set(tasks)], total, min(steps, total))

    def _plan(self, tasks: Sequence[str], total: int, steps: int) -> StepPlan:
        examples = {t: self.examples.by_task[t] for t in tasks if len(self.examples.by_task[t])}
        if not examples:
            names = ", ".join(tasks) or "any task"
            raise DataError(f"no training examples for {names}: choose other tasks with --tasks or other --data")
        part = sum(self.shares[t] for t in examples)
        shares = {t: self.shares[t] / part for t in examples}
        return StepPlan(examples=examples, shares=shares, total=total, steps=steps, seed=self.seed)
