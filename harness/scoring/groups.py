"""Finished runs, and the runs that differ in nothing but the seed taken together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.config.spec import RunSpec, canonical, display_name
from harness.scoring import statistics as stats
from harness.scoring.draws import Draws, read_draws
from harness.scoring.statistics import Estimate, Resampled
from harness.store.record import ProtocolScores, RunRecord
from harness.store.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A finished, scored run under one protocol. draws: None where the run keeps none."""

    directory: RunDirectory
    record: RunRecord
    table: ProtocolScores
    draws: Draws | None

    def value(self, task: str | None) -> float | None:
        """A task's headline, or the mean where task is None."""
        if task is None:
            return self.table.mean
        score = self.table.tasks.get(task)
        return None if score is None else score.value

    def resampled(self, task: str | None, protocol: str) -> Resampled | None:
        """A task's headline, or the mean, with its draws; None where they are missing."""
        if self.draws is None or self.value(task) is None:
            return None
        names = self.table.mean_of if task is None else (task,)
        found = [self.draws[n].headlines.get(protocol) for n in names if n in self.draws]
        known = [f for f in found if f is not None]
        return stats.mean_over_tasks(known) if len(known) == len(names) else None

    def rows(self, task: str | None) -> tuple[tuple[str, str], ...]:
        """The fingerprints of the test rows behind a task's headline or the mean, by task."""
        names = self.table.mean_of if task is None else (task,)
        return tuple((n, self.draws[n].rows) for n in names if self.draws is not None and n in self.draws)


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Runs whose specs differ in the seed alone, under one protocol; at least one."""

    protocol: str
    runs: tuple[Finished, ...]

    @property
    def spec(self) -> RunSpec:
        return self.runs[0].record.spec

    @property
    def name(self) -> str:
        return display_name(self.spec)

    def value(self, task: str | None) -> float | None:
        """The mean over seeds of a task's headline (of the mean over tasks for None); None unless each seed has it."""
        values = [v for run in self.runs if (v := run.value(task)) is not None]
        return sum(values) / len(values) if len(values) == len(self.runs) else None

    def resampled(self, task: str | None) -> list[Resampled] | None:
        """Each seed's draws; None where one is missing, or where the seeds answered different test rows."""
        found = [r for run in self.runs if (r := run.resampled(task, self.protocol)) is not None]
        same = len({run.rows(task) for run in self.runs}) == 1
        return found if same and len(found) == len(self.runs) else None

    def estimate(self, task: str | None) -> Estimate | None:
        """A task's headline, or the mean, over the seeds; None where draws are missing."""
        found = self.resampled(task)
        return stats.estimate(found) if found else None


def difference(a: Group, b: Group, task: str | None) -> Estimate | None:
    """a's headline (mean for None) minus b's; None where draws are missing or the test rows are not the same."""
    left, right = a.resampled(task), b.resampled(task)
    if not left or not right or a.runs[0].rows(task) != b.runs[0].rows(task):
        return None
    return stats.difference(left, right)


def finished(directory: RunDirectory, protocol: str) -> Finished | None:
    """A run's record and scores; None for a run that is not finished, not scored, or lacks the protocol."""
    record, scores = directory.record(), directory.scores()
    if record is None or scores is None or protocol not in scores.root:
        return None
    return Finished(directory=directory, record=record, table=scores.root[protocol], draws=read_draws(directory))


def by_seed(runs: Iterable[Finished], protocol: str) -> list[Group]:
    """Runs that differ in nothing but the seed, in the order of their first run; seeds ascend.

    A run that is given twice (a copy of its directory) counts once.
    """
    groups: dict[bytes, dict[int, Finished]] = {}
    for run in runs:
        spec = run.record.spec
        groups.setdefault(canonical(spec.model_copy(update={"seed": 0})), {}).setdefault(spec.seed, run)
    return [Group(protocol=protocol, runs=tuple(g[seed] for seed in sorted(g))) for g in groups.values()]


def flat(spec: RunSpec) -> dict[str, str]:
    """Every choice of a spec as ``key: JSON value``, defaults and labels included, the seed left out."""
    found: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            found[prefix] = json.dumps(value, ensure_ascii=False)

    walk("", spec.model_dump(mode="json", exclude={"seed"}))
    return found


def differing(specs: Sequence[RunSpec]) -> list[str]:
    """The keys in which specs differ, the seed left out, in the order of the spec."""
    flats = [flat(spec) for spec in specs]
    keys = dict.fromkeys(key for f in flats for key in f)
    return [key for key in keys if len({f.get(key) for f in flats}) > 1]


def data_key(spec: RunSpec) -> str:
    """What must be equal for two runs to have answered the same questions, the base model left aside."""
    ours = {k: v for k, v in flat(spec).items() if k.split(".")[0] in ("suite", "data")}
    ours.pop("data.label", None)
    fields = {"split": spec.eval.split, "rows": spec.eval.per_task, "prompt": spec.prompt, "shots": spec.shots}
    return repr((sorted(ours.items()), sorted(fields.items(), key=str)))
