"""The board of a report as JSON values: that of ``harness leaderboard --format json``, and what a page adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.leaderboard.export import to_json
from harness.leaderboard.report.differences import against
from harness.leaderboard.report.provenance import provenance_json
from harness.leaderboard.report.training import training_json
from harness.leaderboard.summary import warnings
from harness.leaderboard.tables import Kind, Leaderboard, Row, Table, setting_in_words
from harness.leaderboard.titles import titles
from harness.reporting.markdown import short_names
from harness.reporting.numbers import counted, p_value, percent
from harness.scoring.groups import ScoredRun
from harness.scoring.verdict import DRAWS_ONLY
from harness.store.machine import differences as hardware_differences
from harness.store.record import TaskScore
from harness.task import MIN_EXAMPLES

Json = Any


def board_json(board: Leaderboard) -> dict[str, Json]:
    """The whole board. Every number is one that ``harness leaderboard`` or ``harness compare`` computes."""
    content = to_json(board)
    tables = zip(content["tables"], board.tables, titles(board.tables), strict=True)
    content["tables"] = [{**values, **_table(table, title)} for values, table, title in tables]
    for values, table in zip(content["tables"], board.tables, strict=True):
        values["rows"] = [
            {**of_row, **_row(row, table, board.protocol)}
            for of_row, row in zip(values["rows"], table.rows, strict=True)
        ]
    return content


def _table(table: Table, title: str) -> dict[str, Json]:
    return {
        "title": title,
        "tasks": list(table.tasks),
        "short": short_names(table.tasks),
        "warnings": warnings(table),
        "facts": [list(fact) for fact in _facts(table)],
        "against": against(table),
        "transfers": [
            {
                "method": found.label,
                "reference": found.reference,
                "gains": {
                    task: None if gain.estimate is None else [gain.estimate.value, int(gain.significant)]
                    for task, gain in found.gains.gains.items()
                },
            }
            for found in table.transfers
        ],
    }


def _facts(table: Table) -> list[tuple[str, str]]:
    """Names and values of what holds for all rows."""
    spec = table.spec
    data = ", ".join(f"{name} {value[:12]}" for name, value in spec.data.fingerprints.items())
    left_out = [task for task in table.tasks if task not in table.mean_of]
    without = f"; without {', '.join(left_out)} (fewer than {MIN_EXAMPLES} test examples)" if left_out else ""
    facts = [
        ("Data", f"{spec.data.label} ({data})" if data else spec.data.label),
        ("Base model", "none" if spec.model is None else f"{spec.model.label} ({spec.model.fingerprint[:12]})"),
        ("Evaluated on", setting_in_words(spec)),
        ("Mean", f"of {counted(len(table.mean_of), 'task')}: {', '.join(table.mean_of)}{without}"),
    ]
    shared = table.seed_variance.get(None)
    if shared is not None:
        facts.append(
            (
                "Variance between seeds",
                f"shared over {shared.n_rows} rows: {percent(shared.value**0.5)} points, {shared.df:g} degrees of "
                f"freedom; Cochran's test of equal variances: p {p_value(shared.p_equal)}",
            )
        )
    trained = [row.group.hardware for row in table.rows if row.kind is Kind.TRAINED]
    differing = dict.fromkeys(text for other in trained[1:] for text in hardware_differences(trained[0], other))
    if differing:
        facts.append(("Rows come from different hardware", "; ".join(differing)))
    if any(row.group.draws_only for row in table.rows):
        facts.append(("Draws", DRAWS_ONLY))
    return facts


def _row(row: Row, table: Table, protocol: str) -> dict[str, Json]:
    labels = [other.label for other in table.rows]
    place = labels.index(row.label)
    parent = max((i for i, other in enumerate(table.rows[:place]) if not other.nested), default=None)
    return {
        "parent": parent if row.nested else None,
        "values": {name: _seed_values(row, task) for name, task in _columns(table)},
        "missing": _missing(row, table),
        "other_means": dict(row.other_means),
        "router_accuracy": row.router_accuracy,
        "tokens": _mean([None if (t := run.record.training) is None else t.tokens for run in row.group.runs]),
        "provenance": [provenance_json(run) for run in row.group.runs],
        **training_json(row, protocol),
    }


def _columns(table: Table) -> list[tuple[str, str | None]]:
    return [("mean", None), *((task, task) for task in table.tasks)]


def _seed_values(row: Row, task: str | None) -> list[float | None]:
    return [run.value(task) for run in row.group.runs]


def _missing(row: Row, table: Table) -> dict[str, str]:
    """By column, why a row has no value there."""
    found = {}
    for task in table.tasks:
        if row.cells[task].value is None:
            found[task] = next(reason for run in row.group.runs if (reason := _why(run, task)) is not None)
    if row.mean.value is None:
        without = [task for task in table.mean_of if task in found]
        found["mean"] = f"no score on {', '.join(without)}" if without else f"no task has {MIN_EXAMPLES} test examples"
    return found


def _why(run: ScoredRun, task: str) -> str | None:
    score: TaskScore | None = run.table.tasks.get(task)
    if score is None:
        return f"{run.directory.name} was not evaluated on this task"
    if score.value is not None:
        return None
    if not score.n:
        return f"{run.directory.name} has no predictions of it, or the data withhold its targets"
    return f"{run.directory.name} has predictions of only {counted(score.n, 'example')}, not of all"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
