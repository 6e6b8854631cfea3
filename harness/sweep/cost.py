"""The time that runs will take, from finished runs where there are any: for plans, and for the order of a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.data.mixture import n_steps
from harness.errors import HarnessError
from harness.pipeline.prepare import train_examples
from harness.pipeline.resolve import Resolved
from harness.store.record import RunRecord
from harness.store.run_directory import TUNING_FOLDER, RunDirectory, find_runs
from harness.sweep.jobs import Job, Jobs

# A training step has a forward and a backward pass, and a backward pass costs about two forward passes.
_PASSES = 3


class Speeds:
    """Seconds per training example and per prediction, from the records of finished runs on the same base model."""

    def __init__(self, runs: Iterable[RunDirectory], model: str | None) -> None:
        self._train: dict[str, list[float]] = {}
        self._predict: dict[str, list[float]] = {}
        for run in runs:
            record = run.record()
            if record is not None and (record.spec.model and record.spec.model.fingerprint) == model:
                self._learn(run, record)

    def _learn(self, run: RunDirectory, record: RunRecord) -> None:
        name, training = record.spec.method.name, record.training
        scores = run.scores()
        rows = 0 if scores is None else sum(t.n for t in next(iter(scores.root.values())).tasks.values())
        if training is not None and training.examples:
            self._train.setdefault(name, []).append(training.seconds / training.examples)
        if record.generation is not None and rows:
            self._predict.setdefault(name, []).append(record.generation.seconds / rows)

    def seconds(self, resolved: Resolved, steps: int | None) -> float | None:
        """The time of one run: from finished runs of its method, else of all methods; None if there are none."""
        if resolved.model is None:
            return 0.0
        name, rows = resolved.spec.method.name, sum(resolved.evaluated.counts.values())
        predict, train = _rate(self._predict, name), _rate(self._train, name)
        if predict is None or (steps is not None and train is None):
            return None
        return rows * predict + (steps or 0) * resolved.spec.train.batch_size * (train or 0.0)


class Steps:
    """Optimiser steps of a run; the training examples are counted once for each limit on them."""

    def __init__(self) -> None:
        self._n_rows: dict[tuple[str, int | None], int] = {}

    def of(self, resolved: Resolved) -> int | None:
        """The number of steps; None for a method that is not trained. Raises: DataError without training examples."""
        if not resolved.method.trains:
            return None
        train = resolved.spec.train
        if train.steps is not None:
            return train.steps
        key = (str(resolved.spec.suite), train.per_task)
        if key not in self._n_rows:
            rows = train_examples(resolved)
            self._n_rows[key] = 0 if rows is None else sum(rows.counts.values())
        return n_steps(self._n_rows[key], train.batch_size, train.epochs, train.steps)


def speeds_of(jobs: Jobs, resolved: Sequence[Resolved]) -> Speeds:
    """The speeds of the finished runs in the sweep's folder, on the base model of its first run that has one."""
    finished = [*find_runs(jobs.out), *find_runs(jobs.out / TUNING_FOLDER)]
    return Speeds(finished, next((r.spec.model.fingerprint for r in resolved if r.spec.model is not None), None))


class LongestFirst:
    """Orders jobs so that the last ones to end are short ones: searches before what needs their results, then by time.

    Where the speed of a run is unknown, all are compared by the forward passes of an example that they take.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs, self._steps = jobs, Steps()
        self._speeds = speeds_of(jobs, [jobs.resolved(jobs.example(entry)) for entry in jobs.entries])

    def sort(self, ready: Iterable[Job]) -> list[Job]:
        """The jobs in the order in which to start them; equal ones keep their order."""
        known = {job.run.path: (job, self._jobs.resolved(job.asked)) for job in ready}
        steps = {path: self._steps_of(resolved) for path, (_, resolved) in known.items()}
        seconds = {path: self._speeds.seconds(resolved, steps[path]) for path, (_, resolved) in known.items()}
        work: dict[object, float] = {path: value for path, value in seconds.items() if value is not None}
        if len(work) < len(known):
            work = {path: _passes(resolved, steps[path]) for path, (_, resolved) in known.items()}
        jobs = [job for job, _ in known.values()]
        return sorted(jobs, key=lambda job: (not job.tuning, -work[job.run.path]))

    def _steps_of(self, resolved: Resolved) -> int | None:
        try:
            return self._steps.of(resolved)
        except HarnessError:  # The run itself reports that its training examples cannot be read.
            return None


def _passes(resolved: Resolved, steps: int | None) -> float:
    if resolved.model is None:
        return 0.0
    trained = (steps or 0) * resolved.spec.train.batch_size
    return _PASSES * trained + sum(resolved.evaluated.counts.values())


def _rate(rates: dict[str, list[float]], name: str) -> float | None:
    measured = rates.get(name) or [rate for of_method in rates.values() for rate in of_method]
    return sum(measured) / len(measured) if measured else None
