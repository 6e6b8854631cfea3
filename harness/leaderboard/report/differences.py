"""The differences between each row of a table and every row that a reader may choose as the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.leaderboard.tables import Table
from harness.scoring.significance import Difference, Measured, Pair, family_of, measure

Json = Any


def against(table: Table) -> list[list[Json]]:
    """By reference and by row, the differences row minus reference of the mean and of each task; None for itself.

    With one reference, the differences of the means of all rows are one family of tests, and those of all rows on all
    tasks another, as for the transfer of a leaderboard.
    """
    columns: tuple[str | None, ...] = (None, *table.tasks)
    measured = _measured(table, columns)
    n = len(table.rows)
    found: list[list[Json]] = []
    for reference in range(n):
        others = [row for row in range(n) if row != reference]
        means = family_of([measured[row, reference][0] for row in others])
        of_tasks = iter(family_of([m for row in others for m in measured[row, reference][1:]]))
        line: list[Json] = [None] * n
        for row, mean in zip(others, means, strict=True):
            line[row] = [_cell(mean), *(_cell(next(of_tasks)) for _ in table.tasks)]
        found.append(line)
    return found


def _measured(table: Table, columns: Sequence[str | None]) -> dict[tuple[int, int], list[Measured]]:
    """Each pair of rows is measured once; the other direction is its mirror image."""
    found = {}
    for i, a in enumerate(table.rows):
        for j in range(i + 1, len(table.rows)):
            b = table.rows[j]
            found[i, j] = [
                measure(Pair(a=a.group, b=b.group, task=task, shared=table.seed_variance.get(task))) for task in columns
            ]
            found[j, i] = [m.mirrored() for m in found[i, j]]
    return found


def _cell(found: Difference) -> Json:
    """[value, low, high, p, p adjusted, MDD, significant, why it was not tested]; None without an estimate."""
    e = found.estimate
    if e is None:
        return None
    return [e.value, e.low, e.high, e.p, found.p_adjusted, found.mdd, int(found.significant), found.untested]
