"""Two groups of runs on the same test examples: the differences of the tasks and of the mean, and their significance.

The comparison reads only the files of the runs and needs neither data nor model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from harness.config.spec import RunSpec
from harness.errors import StoreError, UsageError, unknown
from harness.reporting.numbers import MISSING, counted, or_missing, p_value, percent
from harness.scoring import statistics as stats
from harness.scoring.comparable import differing, flat, question
from harness.scoring.groups import (
    ScoredRun,
    SeedGroup,
    by_seed,
    scored_run,
    shared_seed_variance,
)
from harness.scoring.significance import Difference, Pair, family
from harness.scoring.verdict import DRAWS_ONLY, Transfer, gain, verdict
from harness.store.finished import open_finished
from harness.store.machine import differences
from harness.store.run_directory import RunDirectory
from harness.task import MIN_EXAMPLES

_ALPHA: Final = 1 - stats.LEVEL


@dataclass(frozen=True, kw_only=True)
class Discordant:
    """The examples of a task that only one of two runs predicts correctly, and p of McNemar's exact test.

    seeds: of a's run and of b's. only_a, only_b: the numbers of examples.
    """

    seeds: tuple[int, int]
    only_a: int
    only_b: int
    p: float


@dataclass(frozen=True, kw_only=True)
class TaskComparison:
    """One task. difference: with its test in the family of all tasks.

    mcnemar: p of McNemar's exact test that both sides are correct equally often, where answers are one label and each
        side is one run. The test compares accuracies, which may rank methods otherwise than a macro-F1 does, so the
        outcome does not depend on it.
    discordant: the examples that only one side predicts correctly, for each pair of runs (see ``discordant_seeds``);
        empty where answers are not one label.

    Figures are None if one side has no score.
    """

    task: str
    headline: str
    a: float | None
    b: float | None
    difference: Difference
    mcnemar: float | None
    discordant: tuple[Discordant, ...] = ()

    @property
    def outcome(self) -> str | None:
        """``win`` or ``loss`` of a where the difference is significant after Holm's correction, else ``tie``."""
        if self.difference.estimate is None or self.difference.p_adjusted is None:
            return None
        if not self.difference.significant:
            return "tie"
        return "win" if self.difference.estimate.value > 0 else "loss"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """a against b under one protocol. mean: the difference over ``mean_of``.

    hardware: what differs between the machines of the two sides. draws_only: whether a run was scored by a version that
        stored bootstrap draws only, with which verdicts on a macro-F1 with many classes are wrong too often.
    """

    a: str
    b: str
    protocol: str
    sample: bool
    hardware: tuple[str, ...]
    draws_only: bool
    tasks: tuple[TaskComparison, ...]
    mean_of: tuple[str, ...]
    a_mean: float | None
    b_mean: float | None
    mean: Difference

    @property
    def verdict(self) -> str:
        """The difference of the means in words."""
        if not self.mean_of:
            return f"{self.a} against {self.b}: no verdict, because no task has the {MIN_EXAMPLES} examples of a mean"
        return verdict(self.a, self.b, self.mean)

    @property
    def transfer(self) -> Transfer:
        """The tasks with gains and losses of a over b."""
        gains = {t.task: t.difference for t in self.tasks if t.difference.estimate is not None}
        return Transfer(gains=gains, mean=self.mean)

    def count(self, outcome: str) -> int:
        """The number of tasks with the outcome ``win``, ``tie`` or ``loss``."""
        return sum(t.outcome == outcome for t in self.tasks)


def compare(a: Sequence[RunDirectory], b: Sequence[RunDirectory], protocol: str | None = None) -> Comparison:
    """Compare two groups of runs; the runs of each group differ only in the seed.

    Args: protocol: default the first protocol of the runs' scores.
    Raises: UsageError naming the difference, for runs that are not comparable or a group of unlike runs; StoreError
        for a run that is not finished or has no draws.
    """
    protocol = protocol or _first_protocol(a[0])
    left, right = _group(a, protocol), _group(b, protocol)
    _check_comparable(left, right)
    a_name, b_name = _names(left, right)
    first = left.runs[0].table
    return Comparison(
        a=a_name,
        b=b_name,
        protocol=protocol,
        sample=any(run.record.sample for run in (*left.runs, *right.runs)),
        hardware=tuple(differences(left.hardware, right.hardware)),
        draws_only=left.draws_only or right.draws_only,
        tasks=_tasks(left, right),
        mean_of=first.mean_of,
        a_mean=left.value(None),
        b_mean=right.value(None),
        mean=family([_pair(left, right, None)])[0],
    )


def render(found: Comparison) -> str:
    """The comparison as plain text; scores in percent, differences in percentage points."""
    lines = [
        *(["This is the embedded sample: it does not show which method is better.", ""] if found.sample else []),
        f"A {found.a}, B {found.b}; protocol {found.protocol}; scores in percent",
        _table(found.tasks),
        "",
        "MDD: minimum detectable difference (80 % power)",
        f"mean of {counted(len(found.mean_of), 'task')}: A {percent(found.a_mean)}, B {percent(found.b_mean)}"
        if found.mean_of
        else f"no mean, because every task has fewer than {MIN_EXAMPLES} examples",
        f"tasks (Holm, {100 * _ALPHA:.0f} %): {found.count('win')} won, {found.count('tie')} tied, "
        f"{found.count('loss')} lost",
    ]
    transfer = found.transfer
    if found.hardware:
        lines.append(f"the sides come from different hardware: {'; '.join(found.hardware)}")
    if found.draws_only:
        lines.append(DRAWS_ONLY)
    untested = next((t.difference.untested for t in found.tasks if t.difference.untested is not None), None)
    if untested is not None:
        lines.append(f"no task was tested: {untested}")
    if transfer.losing:
        most = transfer.losing[0]
        lines.append(
            f"A is lower in {len(transfer.losing)} of {counted(len(transfer.gains), 'task')}, most in {most} "
            f"{gain(transfer.gains[most].estimate)}"
        )
    return "\n".join([*lines, found.verdict])


def _table(tasks: Sequence[TaskComparison]) -> str:
    from tabulate import tabulate

    header = ("task", "headline", "A", "B", "A - B (95 % interval)", "MDD", "p", "p Holm", "McNemar p", "outcome")
    lines = [
        (
            t.task,
            t.headline,
            percent(t.a),
            percent(t.b),
            gain(t.difference.estimate),
            percent(t.difference.mdd),
            p_value(None if t.difference.estimate is None else t.difference.estimate.p),
            p_value(t.difference.p_adjusted),
            p_value(t.mcnemar),
            or_missing(t.outcome),
        )
        for t in tasks
    ]
    align = ("left", "left", *["right"] * 7, "left")
    return tabulate(lines, header, tablefmt="simple", disable_numparse=True, colalign=align)


def to_json(found: Comparison) -> dict[str, Any]:
    """The comparison as JSON values; scores between 0 and 1, differences between -1 and 1."""
    return {
        "a": found.a,
        "b": found.b,
        "protocol": found.protocol,
        "sample": found.sample,
        "hardware": list(found.hardware),
        "draws_only": found.draws_only,
        "tasks": {
            t.task: {
                "headline": t.headline,
                "a": t.a,
                "b": t.b,
                **difference_json(t.difference),
                "mcnemar": t.mcnemar,
                "discordant": [asdict(pair) for pair in t.discordant],
                "outcome": t.outcome,
            }
            for t in found.tasks
        },
        "mean_of": list(found.mean_of),
        "a_mean": found.a_mean,
        "b_mean": found.b_mean,
        "mean": difference_json(found.mean)["difference"],
        "untested": found.mean.untested,
        "won": found.count("win"),
        "tied": found.count("tie"),
        "lost": found.count("loss"),
        "losing": list(found.transfer.losing),
        "verdict": found.verdict,
    }


def difference_json(found: Difference) -> dict[str, Any]:
    """A difference with its test as JSON values."""
    estimate = found.estimate
    values = None if estimate is None else {**asdict(estimate), "seeds": list(estimate.seeds), "mdd": found.mdd}
    if values is not None:
        values["df"] = None if math.isinf(values["df"]) else values["df"]
        values["significant"] = found.significant
    return {
        "difference": values,
        "p": None if estimate is None else estimate.p,
        "p_holm": found.p_adjusted,
        "untested": found.untested,
    }


def _first_protocol(run: RunDirectory) -> str:
    scores = run.scores()
    if scores is None or not scores.root:
        raise StoreError(f"{run.path} has no scores. Compute them: harness score {run.path}")
    return next(iter(scores.root))


def _group(runs: Sequence[RunDirectory], protocol: str) -> SeedGroup:
    """The runs as one group. Raises: as ``compare``."""
    groups = by_seed([_load(run, protocol) for run in runs], protocol)
    if len(groups) > 1:
        keys = ", ".join(differing([g.spec for g in groups[:2]]))
        one, two = (g.runs[0].directory.name for g in groups[:2])
        raise UsageError(
            f"{one} and {two} differ in {keys}; the runs of one side may differ only in the seed. "
            "Give the runs of the other side after --with."
        )
    return groups[0]


def _load(run: RunDirectory, protocol: str) -> ScoredRun:
    open_finished(run.path)  # Raises a StoreError for a run that is not finished.
    scores = run.scores()
    if scores is not None and protocol not in scores.root:
        raise unknown(f"protocol of {run.name}", protocol, scores.root)
    scored = scored_run(run, protocol)
    if scored is None or scored.draws is None:
        raise StoreError(f"{run.path} has no scores or no bootstrap draws. Compute them: harness score {run.path}")
    return scored


def _check_comparable(a: SeedGroup, b: SeedGroup) -> None:
    one, two = a.runs[0].directory.name, b.runs[0].directory.name
    models = a.spec.model is not None and b.spec.model is not None
    left, right = question(a.spec, model=models), question(b.spec, model=models)
    if left != right:
        keys = [k for k in dict.fromkeys([*left, *right]) if left.get(k) != right.get(k)]
        values = "; ".join(f"{k}: {left.get(k, MISSING)} and {right.get(k, MISSING)}" for k in keys)
        raise UsageError(f"{one} and {two} are not comparable ({values}). Compare runs of one leaderboard table.")
    both = {run.record.run_id for run in a.runs} & {run.record.run_id for run in b.runs}
    if both:
        raise UsageError(f"run {min(both)[:8]} is on both sides. Compare it with other runs.")
    for task in a.runs[0].table.tasks:
        fingerprints = {f for run in (*a.runs, *b.runs) for f in run.fingerprints(task).values()}
        if len(fingerprints) > 1:
            raise UsageError(
                f"{task}: {one} and {two} were scored on different test examples, though their specs are the same. "
                "Score both again with the same data: harness score RUN --data DIR"
            )


def _names(a: SeedGroup, b: SeedGroup) -> tuple[str, str]:
    """The methods' names; equal names are completed with the keys, or the seeds, in which the sides differ."""
    if a.name != b.name:
        return a.name, b.name
    keys = [k for k in differing([a.spec, b.spec]) if not k.endswith(".label")]
    if not keys:
        return _with_seeds(a), _with_seeds(b)
    return _with_keys(a.name, a.spec, keys), _with_keys(b.name, b.spec, keys)


def _with_keys(name: str, spec: RunSpec, keys: Sequence[str]) -> str:
    values = flat(spec)
    return f"{name} ({', '.join(f'{k}={values.get(k, MISSING)}' for k in keys)})"


def _with_seeds(group: SeedGroup) -> str:
    return f"{group.name} (seed {', '.join(str(run.record.spec.seed) for run in group.runs)})"


def _tasks(a: SeedGroup, b: SeedGroup) -> tuple[TaskComparison, ...]:
    table = a.runs[0].table
    pairs = {task: discordant_seeds(a, b, task) for task in table.tasks}
    differences = dict(zip(table.tasks, family([_pair(a, b, task) for task in table.tasks]), strict=True))
    return tuple(
        TaskComparison(
            task=task,
            headline=score.headline,
            a=a.value(task),
            b=b.value(task),
            difference=differences[task],
            mcnemar=pairs[task][0].p if pairs[task] and len(a.runs) == len(b.runs) == 1 else None,
            discordant=pairs[task],
        )
        for task, score in table.tasks.items()
    )


def _pair(a: SeedGroup, b: SeedGroup, task: str | None) -> Pair:
    """Both sides share their variance between seeds where it is equal."""
    return Pair(a=a, b=b, task=task, shared=shared_seed_variance([a, b], task))


def discordant_seeds(a: SeedGroup, b: SeedGroup, task: str) -> tuple[Discordant, ...]:
    """The discordant examples of each pair of runs with equal seeds; a side of one run is paired with every run.

    Returns: nothing where the answers are not one label, or where the runs have no draws.
    """
    alone = len(a.runs) == 1 or len(b.runs) == 1
    found = []
    for left in a.runs:
        for right in b.runs:
            seeds = left.record.spec.seed, right.record.spec.seed
            flags = _correct(left, a.protocol, task), _correct(right, b.protocol, task)
            if flags[0] is not None and flags[1] is not None and (alone or seeds[0] == seeds[1]):
                tested = stats.mcnemar(flags[0], flags[1])
                found.append(Discordant(seeds=seeds, only_a=tested.only_a, only_b=tested.only_b, p=tested.p))
    return tuple(found)


def _correct(run: ScoredRun, protocol: str, task: str) -> NDArray[np.bool_] | None:
    """Which predictions of a task are correct, (n,); None if they are not one label, or the run has no draws."""
    return None if run.draws is None or task not in run.draws else run.draws[task].correct.get(protocol)
