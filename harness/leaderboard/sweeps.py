"""Runs by the use that a leaderboard's TOML file has for them: rows, points of sweeps, seed noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.leaderboard.tables import GridPoint, SeedNoise, Sweep
from harness.scoring.comparable import question
from harness.scoring.groups import ScoredRun, SeedGroup, by_seed, group_difference
from harness.sweep.entries import Entry, Matcher, Part


@dataclass(frozen=True, kw_only=True)
class GridRun:
    """A run at one point of a sweep, and the entry of the file that requests it."""

    entry: Entry
    run: ScoredRun


@dataclass(frozen=True, kw_only=True)
class RunsByUse:
    """Runs by their use. A run may be both a row and a grid point; runs that the file does not request are rows."""

    rows: tuple[ScoredRun, ...]
    null: tuple[ScoredRun, ...]
    grid: tuple[GridRun, ...]


def sort_runs(runs: Sequence[ScoredRun], matcher: Matcher | None) -> RunsByUse:
    """Each run by its use in the file; without a file all runs are rows."""
    if matcher is None:
        return RunsByUse(rows=tuple(runs), null=(), grid=())
    rows, null, grid = [], [], []
    for run in runs:
        entries = matcher.entries_of(run.record.spec)
        parts = {e.part for e in entries}
        grid += [GridRun(entry=e, run=run) for e in entries if e.part is Part.SWEEP]
        if Part.NULL in parts:
            null.append(run)
        elif not entries or parts & {Part.ROW, Part.BASELINE}:
            rows.append(run)
    return RunsByUse(rows=tuple(rows), null=tuple(null), grid=tuple(grid))


def sweeps_of(by_use: RunsByUse, matcher: Matcher, like: SeedGroup, protocol: str) -> tuple[Sweep, ...]:
    """The sweeps with runs on the base model and data of a table, of which ``like`` is a row."""
    sweeps = []
    for spec in matcher.board.sweep:
        points = []
        for at in dict.fromkeys(e.point for e in matcher.entries if e.sweep == spec.name):
            runs = [
                g.run for g in by_use.grid if (g.entry.sweep, g.entry.point) == (spec.name, at) and _alike(g.run, like)
            ]
            groups = by_seed(runs, protocol)
            if groups:  # If runs have different learning rates, the group with the most seeds is used.
                points.append(GridPoint(at=dict(at), group=max(groups, key=lambda g: len(g.runs))))
        if points:
            method = spec.method + (f"+{spec.ablation}" if spec.ablation else "")
            sweeps.append(Sweep(name=spec.name, method=method, keys=tuple(spec.grid), points=tuple(points)))
    return tuple(sweeps)


def seed_noise_of(by_use: RunsByUse, rows: Sequence[SeedGroup], protocol: str) -> SeedNoise | None:
    """The null row and the row of the same configuration; None if either is missing."""
    for null in by_seed(by_use.null, protocol):
        bare = null.spec.model_copy(update={"seed": 0})
        for row in rows:
            if row.spec.model_copy(update={"seed": 0}) == bare:
                return SeedNoise(null=null, row=row, difference=group_difference(null, row, None))
    return None


def _alike(run: ScoredRun, row: SeedGroup) -> bool:
    """Whether both have the same test data and base model; limits on the number of examples may differ."""
    one, two = run.record.spec, row.spec
    free = {"eval": one.eval.model_copy(update={"per_task": two.eval.per_task})}
    return question(one.model_copy(update=free)) == question(two)
