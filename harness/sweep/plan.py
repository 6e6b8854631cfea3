"""The cost of a leaderboard's file: the number of runs, their parameters and time, and what is not possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from harness.pipeline.resolve import Resolved
from harness.reporting.numbers import counted, duration, number, or_missing, share
from harness.store.record import Parameters
from harness.sweep.cost import Speeds, Steps, speeds_of
from harness.sweep.entries import Entry
from harness.sweep.jobs import Job, Jobs
from harness.sweep.scheduler import settled
from harness.sweep.spec import RowSpec

if TYPE_CHECKING:
    from harness.models.loading import LoadedModel


@dataclass(frozen=True, kw_only=True)
class Line:
    """One entry of the file. runs: with its learning-rate search; seconds: for the missing runs; None: unknown."""

    label: str
    steps: int | None
    parameters: Parameters
    runs: int
    done: int
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The whole file. impossible: reasons by label.

    n_runs, n_done: runs that are known so far; one that several entries share counts once. n_more: the largest number
    of runs that may follow, because a search for a learning rate ends when its best is inside the grid.
    """

    lines: tuple[Line, ...]
    impossible: dict[str, str]
    n_runs: int
    n_done: int
    n_more: int
    seconds: float | None


def make_plan(jobs: Jobs) -> SweepPlan:
    """Count runs and parameters, and estimate the time. Raises: ModelError if the base model cannot be loaded."""
    resolved = [jobs.resolved(jobs.example(entry)) for entry in jobs.entries]
    loaded = _load(resolved)
    speeds, steps = speeds_of(jobs, resolved), Steps()
    lines = [_line(jobs, e, r, loaded, speeds, steps) for e, r in zip(jobs.entries, resolved, strict=True)]
    every = jobs.all_jobs()
    left = [_seconds(jobs, job, speeds, steps) for job in every if not settled(job)]
    return SweepPlan(
        lines=tuple(lines),
        impossible=dict(jobs.impossible),
        n_runs=len(every),
        n_done=len(every) - len(left),
        n_more=sum(_more(jobs, config) for config in jobs.tuned()),
        seconds=_sum(left),
    )


def render(plan: SweepPlan) -> str:
    """The plan as a table."""
    rows = [
        (
            line.label,
            or_missing(line.steps),
            number(line.parameters.stored),
            number(line.parameters.active),
            share(line.parameters.percent),
            f"{line.done}/{line.runs}",
            duration(line.seconds),
        )
        for line in plan.lines
    ]
    header = ("entry", "steps", "stored", "active", "% of base", "done", "time left")
    table = tabulate(rows, header, tablefmt="simple", disable_numparse=True, colalign=("left", *["right"] * 6))
    left = f", about {duration(plan.seconds)} if run one after another" if plan.seconds else ""
    more = f"; at most {plan.n_more} more if every grid of learning rates grows to its limit" if plan.n_more else ""
    unknown = " (time unknown until a run has finished)" if plan.seconds is None else ""
    return "\n".join(
        [
            table,
            "",
            f"{counted(plan.n_runs, 'run')}, {plan.n_done} done, {plan.n_runs - plan.n_done} left{left}{unknown}{more}",
            *(f"not possible: {label}: {reason}" for label, reason in plan.impossible.items()),
        ]
    )


def to_json(plan: SweepPlan) -> dict[str, Any]:
    """The plan as JSON values."""
    lines = [{**vars(line), "parameters": line.parameters.model_dump()} for line in plan.lines]
    return {**asdict(plan), "lines": lines}


def _line(
    jobs: Jobs, entry: Entry, resolved: Resolved, loaded: LoadedModel | None, speeds: Speeds, steps: Steps
) -> Line:
    from harness.pipeline.dry_run import parameters

    grid = [] if entry.tuned_as is None else [job for of in jobs.tuning_jobs(entry.tuned_as).values() for job in of]
    mine = [*grid, *jobs.final_jobs(entry, jobs.chosen(entry) or jobs.first(entry))]
    left = [_seconds(jobs, job, speeds, steps) for job in mine if not settled(job)]
    return Line(
        label=entry.label,
        steps=steps.of(resolved),
        parameters=parameters(resolved, loaded if resolved.model is not None else None),
        runs=len(mine),
        done=len(mine) - len(left),
        seconds=_sum(left),
    )


def _more(jobs: Jobs, config: RowSpec) -> int:
    """How many runs a search may still add: none where it has ended."""
    if jobs.tuning(config) is not None:
        return 0
    return jobs.most_tuning_jobs(config) - sum(len(of_point) for of_point in jobs.tuning_jobs(config).values())


def _seconds(jobs: Jobs, job: Job, speeds: Speeds, steps: Steps) -> float | None:
    resolved = jobs.resolved(job.asked)
    return speeds.seconds(resolved, steps.of(resolved))


def _load(resolved: Sequence[Resolved]) -> LoadedModel | None:
    from harness.models.loading import load_model

    first = next((r for r in resolved if r.model is not None), None)
    return None if first is None or first.model is None else load_model(first.model, first.spec.train.precision)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None
