"""What stands beside the rows of a leaderboard: sweeps, and the noise that the null row shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.board_match import Matcher
from harness.board_plan import Part
from harness.groups import Finished, Group, by_seed, data_key, difference
from harness.stats import Estimate


@dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration of a sweep. at: the grid's keys and values, as text."""

    at: Mapping[str, str]
    group: Group


def shown(key: str, value: str) -> str:
    """A value of a grid for people: no limit on the rows is all of them."""
    return value if value != "None" else "all" if key.endswith("per_task") else "none"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A method over a grid, in the file's order; points that have no run are left out."""

    name: str
    method: str
    keys: tuple[str, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The null row: a row's own method under other seeds. difference: null minus row, 0 in truth."""

    null: Group
    row: Group
    difference: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """Runs by what they are for. A run may be a row and a point; runs that the file does not ask for are rows."""

    rows: tuple[Finished, ...]
    null: tuple[Finished, ...]
    points: tuple[tuple[str, tuple[tuple[str, str], ...], Finished], ...]  # sweep, point, run


def sort_runs(runs: Sequence[Finished], matcher: Matcher | None) -> Sorted:
    """Each run where the file wants it; all of them are rows without a file."""
    if matcher is None:
        return Sorted(rows=tuple(runs), null=(), points=())
    rows, null, points = [], [], []
    for run in runs:
        found = matcher.entries_of(run.record.spec)
        parts = {e.part for e in found}
        points += [(e.sweep or "", e.point, run) for e in found if e.part is Part.SWEEP]
        if Part.NULL in parts:
            null.append(run)
        elif not found or parts & {Part.ROW, Part.TRIVIAL}:
            rows.append(run)
    return Sorted(rows=tuple(rows), null=tuple(null), points=tuple(points))


def sweeps_of(found: Sorted, matcher: Matcher, like: Group, protocol: str) -> tuple[Sweep, ...]:
    """The sweeps with runs on the base model and data of a table's row."""
    sweeps = []
    for spec in matcher.board.sweep:
        points = []
        for at in dict.fromkeys(e.point for e in matcher.entries if e.sweep == spec.name):
            runs = [r for name, point, r in found.points if (name, point) == (spec.name, at) and _alike(r, like)]
            groups = by_seed(runs, protocol)
            if groups:  # of several learning rates, the one with most seeds
                points.append(Point(at=dict(at), group=max(groups, key=lambda g: len(g.runs))))
        if points:
            method = spec.method + (f"+{spec.ablation}" if spec.ablation else "")
            sweeps.append(Sweep(name=spec.name, method=method, keys=tuple(spec.grid), points=tuple(points)))
    return tuple(sweeps)


def noise_of(found: Sorted, rows: Sequence[Group], protocol: str) -> Noise | None:
    """The null row beside the row of the same configuration; None where either is missing."""
    for null in by_seed(found.null, protocol):
        bare = null.spec.model_copy(update={"seed": 0})
        for row in rows:
            if row.spec.model_copy(update={"seed": 0}) == bare:
                return Noise(null=null, row=row, difference=difference(null, row, None))
    return None


def _alike(run: Finished, row: Group) -> bool:
    """On the same test rows and base model; limits on the rows may differ."""
    one, two = run.record.spec, row.spec
    if (one.model and one.model.fingerprint) != (two.model and two.model.fingerprint):
        return False
    free = {"eval": one.eval.model_copy(update={"per_task": two.eval.per_task})}
    return data_key(one.model_copy(update=free)) == data_key(two)
