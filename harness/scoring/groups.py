"""Scored runs, and groups of runs that differ only in the seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.config.spec import RunSpec, canonical, display_name
from harness.scoring import statistics as stats
from harness.scoring.draws import Draws, read_draws
from harness.scoring.statistics import Estimate, Resampled, SeedVariance, Side
from harness.store.record import ProtocolScores, RunRecord
from harness.store.run_directory import RunDirectory
from harness.store.tuning import Tuning, read_tuning


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredRun:
    """A finished run with its scores under one protocol.

    other_means: the mean under each other protocol. draws: None if the run has none.
    """

    directory: RunDirectory
    record: RunRecord
    table: ProtocolScores
    other_means: Mapping[str, float | None]
    draws: Draws | None

    def value(self, task: str | None) -> float | None:
        """A task's headline, or the mean where task is None."""
        if task is None:
            return self.table.mean
        score = self.table.tasks.get(task)
        return None if score is None else score.value

    def resampled(self, task: str | None, protocol: str) -> Resampled | None:
        """A task's headline, or the mean, with its draws; None if one is missing."""
        if self.draws is None or self.value(task) is None:
            return None
        names = self.table.mean_of if task is None else (task,)
        headlines = [self.draws[n].headlines.get(protocol) for n in names if n in self.draws]
        known = [h for h in headlines if h is not None]
        return stats.mean_over_tasks(known) if len(known) == len(names) else None

    def fingerprints(self, task: str | None) -> Mapping[str, str]:
        """By task, the fingerprint of the test examples of a task's headline, or of every task of the mean."""
        names = self.table.mean_of if task is None else (task,)
        return {n: self.draws[n].fingerprint for n in names if self.draws is not None and n in self.draws}


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedGroup:
    """At least one run under one protocol; the runs' specs differ only in the seed."""

    protocol: str
    runs: tuple[ScoredRun, ...]

    @property
    def spec(self) -> RunSpec:
        """The spec of the first seed."""
        return self.runs[0].record.spec

    @property
    def name(self) -> str:
        """The method's name with its ablation."""
        return display_name(self.spec)

    def value(self, task: str | None) -> float | None:
        """A task's headline (the mean over tasks for None), averaged over seeds; None unless every seed has one."""
        values = self.values(task)
        return sum(values) / len(values) if len(values) == len(self.runs) else None

    def resampled(self, task: str | None) -> list[Resampled] | None:
        """Each seed's draws; None if one is missing, or if the seeds have different test examples."""
        if task not in self._resampled:
            self._resampled[task] = self._resample(task)
        return self._resampled[task]

    @cached_property
    def _resampled(self) -> dict[str | None, list[Resampled] | None]:
        """By task, what ``resampled`` has found: a table compares each group with several others."""
        return {}

    def _resample(self, task: str | None) -> list[Resampled] | None:
        resampled = [r for run in self.runs if (r := run.resampled(task, self.protocol)) is not None]
        first = self.runs[0].fingerprints(task)
        same = all(run.fingerprints(task) == first for run in self.runs)
        return resampled if same and len(resampled) == len(self.runs) else None

    @property
    def seeded(self) -> bool:
        """Whether the runs were trained, so that other seeds give other predictions."""
        return self.runs[0].record.training is not None

    @property
    def untested(self) -> str | None:
        """The reason why no verdict can rest on these runs; None if they can be tested."""
        if self.seeded and len(self.runs) < 2:
            return f"{self.name} has one trained seed"
        if self.tuning is not None and self.tuning.at_the_edge:
            return f"{self.name} has its best learning rate at the edge of its grid"
        return None

    @cached_property
    def tuning(self) -> Tuning | None:
        """The search that has chosen the learning rate; None if it was given."""
        return read_tuning(self.runs[0].directory)

    @property
    def tuned_keys(self) -> tuple[str, ...]:
        """The keys besides the learning rate that a search has chosen."""
        return () if self.tuning is None else tuple(self.tuning.chosen_others)

    @property
    def hardware(self) -> Mapping[str, Any]:
        """The machine of the first run."""
        return self.runs[0].record.provenance.hardware

    @property
    def draws_only(self) -> bool:
        """Whether a run was scored without the deviations of single examples, so that tests rest on its draws."""
        of_tasks = [found for run in self.runs for found in (run.draws or {}).values()]
        headlines = [h for found in of_tasks if (h := found.headlines.get(self.protocol)) is not None]
        return any(h.deviations is None for h in headlines)

    def values(self, task: str | None) -> list[float]:
        """A task's headline, or the mean, of each seed that has one."""
        return [v for run in self.runs if (v := run.value(task)) is not None]

    def side(self, task: str | None) -> Side | None:
        """The draws of every seed; None if one is missing, or if the seeds have different test examples."""
        resampled = self.resampled(task)
        return Side(runs=resampled, seeded=self.seeded) if resampled else None

    def estimate(self, task: str | None, shared: SeedVariance | None = None) -> Estimate | None:
        """A task's headline, or the mean, over the seeds; None if draws are missing.

        Args: shared: the variance between seeds that the group shares with others; default its own.
        """
        side = self.side(task)
        return None if side is None else stats.estimate(side, shared)


def group_difference(
    a: SeedGroup, b: SeedGroup, task: str | None, shared: SeedVariance | None = None
) -> Estimate | None:
    """a's headline (mean for None) minus b's; None if draws are missing or the test examples differ."""
    left, right = a.side(task), b.side(task)
    if left is None or right is None or a.runs[0].fingerprints(task) != b.runs[0].fingerprints(task):
        return None
    return stats.difference(left, right, shared)


def shared_seed_variance(groups: Sequence[SeedGroup], task: str | None) -> SeedVariance | None:
    """The variance between seeds that trained groups share; None if they do not (see ``shared_variance``)."""
    return stats.shared_variance([group.values(task) for group in groups if group.seeded])


def scored_run(directory: RunDirectory, protocol: str) -> ScoredRun | None:
    """A run with its record and scores; None if it is not finished, not scored, or lacks the protocol."""
    record, scores = directory.record(), directory.scores()
    if record is None or scores is None or protocol not in scores.root:
        return None
    return ScoredRun(
        directory=directory,
        record=record,
        table=scores.root[protocol],
        other_means={name: of.mean for name, of in scores.root.items() if name != protocol},
        draws=read_draws(directory),
    )


def by_seed(runs: Iterable[ScoredRun], protocol: str) -> list[SeedGroup]:
    """Groups of runs that differ only in the seed, in the order of their first runs; seeds ascend.

    A run that occurs twice (as a copy of its directory) is counted once.
    """
    groups: dict[bytes, dict[int, ScoredRun]] = {}
    for run in runs:
        spec = run.record.spec
        groups.setdefault(canonical(spec.model_copy(update={"seed": 0})), {}).setdefault(spec.seed, run)
    return [SeedGroup(protocol=protocol, runs=tuple(g[seed] for seed in sorted(g))) for g in groups.values()]
