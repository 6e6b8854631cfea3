"""What a report prints without its script: sentences, facts, tables of numbers, and the origin of every run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from harness.config.clusters import clusters_of
from harness.leaderboard.plots.digest import read_digest
from harness.leaderboard.publish import without_folders
from harness.leaderboard.report.matrices import Matrix, matrices_of
from harness.leaderboard.summary import summary, verdicts, warnings
from harness.leaderboard.tables import Kind, Leaderboard, Row, Table, grid_value, setting_in_words
from harness.reporting.markdown import short_names
from harness.reporting.numbers import counted, duration, number, p_value, percent, percent_range
from harness.scoring.groups import ScoredRun
from harness.scoring.verdict import DRAWS_ONLY, gain
from harness.store.machine import differences as hardware_differences
from harness.task import MIN_EXAMPLES

Context = Mapping[str, Any]
_SHADES: Final = 10  # The style sheet has this many shades of a colour for the cells of a matrix.


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A matrix as a table. lines: {"name", "cells": [{"text", "look", "bold"}]}; look: classes of the style sheet."""

    caption: str
    columns: tuple[str, ...]
    lines: tuple[Context, ...]


def table_text(table: Table, title: str, missing: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """One table. missing: the reason for each empty cell, by row and column."""
    return {
        "title": title,
        "sentences": [*warnings(table), *summary(table)],
        "rows": [row.label for row in table.rows],
        "tasks": list(table.tasks),
        "seeds": sorted({run.record.spec.seed for row in table.rows for run in row.group.runs}),
        "unranked": [f"{row.label} has no rank: {row.unranked}" for row in table.rows if row.unranked is not None],
        "missing": [
            f"{row}, {column}: {reason}" for row, of_row in missing.items() for column, reason in of_row.items()
        ],
        "facts": list(_facts(table)),
        "verdicts": verdicts(table),
        "seed_noise": _seed_noise(table),
        "matrices": [*_transfers(table), *(heat(m) for row in table.rows for m in matrices_of(row))],
        "clusters": list(_clusters(table)),
        "tuned": any(row.tuning is not None for row in table.rows),
        "gated": any(read_digest(row.group.runs[0].directory).gates for row in table.rows),
        "skills": [found for row in table.rows for found in _skills(row)],
        "sweeps": list(_sweeps(table)),
        "runs": [{"name": row.label, "runs": [_origin(run) for run in row.group.runs]} for row in table.rows],
    }


def orientation_text(board: Leaderboard) -> list[str]:
    """Published figures, then rows of back ends with their settings."""
    rows = [
        f"{row.label}: {percent(row.mean.value)}, {row.group.spec.data.label}, {setting_in_words(row.group.spec)}"
        for row in board.elsewhere
    ]
    return [*(f"{f.name}: {number(f.value, 2)}. {f.note}" for f in board.orientation), *rows]


def heat(matrix: Matrix) -> Heat:
    """A matrix with the shade of each value; the printed numbers may be others than those that give the shades."""
    known = [abs(value) for line in matrix.values for value in line if value is not None]
    most = max(known, default=0.0) or 1.0
    printed = matrix.values if matrix.numbers is None else matrix.numbers
    lines = []
    for i, name in enumerate(matrix.rows):
        cells = []
        for k, value in enumerate(matrix.values[i]):
            look = "missing" if value is None else f"{'minus' if value < 0 else 'plus'} w{_shade(value, most)}"
            cells.append({"text": _printed(printed[i][k]), "look": look, "bold": (i, k) in matrix.bold})
        lines.append({"name": name, "cells": cells})
    return Heat(caption=matrix.caption, columns=matrix.columns, lines=tuple(lines))


def _shade(value: float, most: float) -> int:
    return round(_SHADES * abs(value) / most)


def _printed(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"


def _facts(table: Table) -> Iterator[tuple[str, str]]:
    """Names and values of what holds for all rows."""
    spec = table.spec
    data = ", ".join(f"{name} {value[:12]}" for name, value in spec.data.fingerprints.items())
    left_out = [task for task in table.tasks if task not in table.mean_of]
    without = f"; without {', '.join(left_out)} (fewer than {MIN_EXAMPLES} test examples)" if left_out else ""
    yield "Data", f"{spec.data.label} ({data})" if data else spec.data.label
    yield "Base model", "none" if spec.model is None else f"{spec.model.label} ({spec.model.fingerprint[:12]})"
    yield "Evaluated on", setting_in_words(spec)
    yield "Mean", f"of {counted(len(table.mean_of), 'task')}: {', '.join(table.mean_of)}{without}"
    by_metric: dict[str, list[str]] = {}
    for task, headline in table.headlines.items():
        by_metric.setdefault(headline, []).append(task)
    yield "Headlines", "; ".join(f"{headline} of {', '.join(tasks)}" for headline, tasks in by_metric.items())
    yield "Intervals", "95 %, over seeds and test examples; with one seed, over test examples only"
    shared = table.seed_variance.get(None)
    if shared is not None:
        yield (
            "Variance between seeds",
            f"shared over {shared.n_rows} rows: {percent(shared.value**0.5)} points, {shared.df:g} degrees of "
            f"freedom; Cochran's test of equal variances: p {p_value(shared.p_equal)}",
        )
    trained = [row.group.hardware for row in table.rows if row.kind is Kind.TRAINED]
    differing = dict.fromkeys(text for other in trained[1:] for text in hardware_differences(trained[0], other))
    if differing:
        yield "Rows come from different hardware", "; ".join(differing)
    if any(row.group.draws_only for row in table.rows):
        yield "Draws", DRAWS_ONLY


def _seed_noise(table: Table) -> list[str]:
    noise = table.seed_noise
    if noise is None:
        return []
    return [
        f"{noise.row.name} against the same method under other seeds: {gain(noise.difference)}; the true difference is "
        "0."
    ]


def _transfers(table: Table) -> Iterator[Heat]:
    """The gains over training each task alone."""
    if not table.transfers:
        return
    found = [[row.gains.gains.get(task) for task in table.tasks] for row in table.transfers]
    values = tuple(
        tuple(None if f is None or f.estimate is None else 100 * f.estimate.value for f in line) for line in found
    )
    bold = {
        (i, k)
        for i, line in enumerate(found)
        for k, f in enumerate(line)
        if f is not None and f.significant and not table.sample
    }
    yield heat(
        Matrix(
            caption=f"Gains in percentage points over {table.transfers[0].reference}, which trains each task alone; "
            "bold: significant",
            rows=tuple(row.label for row in table.transfers),
            columns=tuple(short_names(table.tasks)),
            values=values,
            bold=frozenset(bold),
        )
    )


def _skills(row: Row) -> Iterator[Heat]:
    """The skills of the tasks of a row's first seed, averaged over layers."""
    skills = read_digest(row.group.runs[0].directory).skills
    if not skills:
        return
    n = len(next(iter(skills.values())))
    yield heat(
        Matrix(
            caption=f"Skills of {row.label}, averaged over layers",
            rows=tuple(skills),
            columns=tuple(str(i + 1) for i in range(n)),
            values=tuple(tuple(values) for values in skills.values()),
        )
    )


def _clusters(table: Table) -> Iterator[str]:
    for row in table.rows:
        clusters = clusters_of(row.group.spec)
        if len(clusters) > 1:
            groups = "; ".join(f"{cluster.name}: {', '.join(cluster.tasks)}" for cluster in clusters)
            yield f"{row.label}: {groups}"


def _sweeps(table: Table) -> Iterator[Context]:
    shared = table.seed_variance.get(None)
    for sweep in table.sweeps:
        points = []
        for point in sweep.points:
            at = ", ".join(f"{key} {grid_value(key, value)}" for key, value in point.at.items())
            found = point.group.estimate(None, shared)
            ends = "" if found is None else f" ({percent_range((found.low, found.high))})"
            points.append(f"{at}: mean {percent(point.group.value(None))}{ends}")
        yield {"title": f"Sweep: {sweep.name} of {sweep.method}", "points": points}


def _origin(run: ScoredRun) -> Context:
    """The command that makes a run again, and where it comes from."""
    record = run.record
    origin = record.provenance
    code = (
        "unknown" if origin.commit is None else origin.commit + (", with uncommitted changes" if origin.dirty else "")
    )
    facts = [("run_id", record.run_id), ("seed", str(record.spec.seed)), ("code", code)]
    facts.append(("finished", record.finished_at.strftime("%Y-%m-%d %H:%M UTC")))
    if record.training is not None:
        done = record.training
        facts.append(("training", f"{done.steps:,} steps, {done.tokens:,} tokens, {duration(done.seconds)}"))
    facts += [("hardware", _listed(origin.hardware)), ("settings", _listed(origin.settings))]
    facts.append(("packages", f"python {origin.python}, {_listed(origin.packages)}"))
    command = shlex.join(without_folders(origin.command))
    return {"name": run.directory.name, "command": command, "facts": [pair for pair in facts if pair[1]]}


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
