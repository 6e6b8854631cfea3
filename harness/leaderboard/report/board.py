"""The board of a report as JSON values: that of ``harness leaderboard --format json``, and what its pictures need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.leaderboard.export import to_json
from harness.leaderboard.plots.digest import read_digest
from harness.leaderboard.report.differences import against
from harness.leaderboard.tables import Kind, Leaderboard, Row, Table
from harness.reporting.markdown import short_names
from harness.reporting.numbers import MISSING, count, counted, duration, number, percent, share, size
from harness.scoring.groups import ScoredRun
from harness.task import MIN_EXAMPLES, ParameterLimit

Json = Any


def board_json(board: Leaderboard) -> dict[str, Json]:
    """The whole board. Every number is one that ``harness leaderboard`` or ``harness compare`` computes."""
    content = to_json(board)
    for values, table in zip(content["tables"], board.tables, strict=True):
        rows = zip(values["rows"], table.rows, strict=True)
        values |= {
            "tasks": list(table.tasks),
            "short": short_names(table.tasks),
            "against": against(table),
            "costs": _costs(table, board.parameter_limit),
            "rows": [{**of_row, **_row(row, table)} for of_row, row in rows],
        }
    return content


def missing_values(row: Row, table: Table) -> dict[str, str]:
    """By column, why a row has no value there."""
    found = {}
    for task in table.tasks:
        if row.cells[task].value is None:
            found[task] = next(reason for run in row.group.runs if (reason := _why(run, task)) is not None)
    if row.mean.value is None:
        without = [task for task in table.mean_of if task in found]
        found["mean"] = f"no score on {', '.join(without)}" if without else f"no task has {MIN_EXAMPLES} test examples"
    return found


def _row(row: Row, table: Table) -> dict[str, Json]:
    """What is added to a row: of every seed the means and losses, and of the first one losses of tasks and gates."""
    place = table.rows.index(row)
    parent = max((i for i, other in enumerate(table.rows[:place]) if not other.nested), default=None)
    digests = [read_digest(run.directory) for run in row.group.runs]
    return {
        "parent": parent if row.nested else None,
        "seed_means": [run.value(None) for run in row.group.runs],
        "missing": missing_values(row, table),
        "other_means": dict(row.other_means),
        "losses": [list(digest.losses) for digest in digests],
        "task_losses": {task: list(values) for task, values in digests[0].task_losses.items()},
        "gates": {task: [list(block) for block in blocks] for task, blocks in digests[0].gates.items()},
    }


def _costs(table: Table, limit: ParameterLimit | None) -> list[dict[str, Json]]:
    """The columns of the costs: head, title, and for each row the value to sort by and its text."""
    parameters = [row.group.runs[0].record.parameters for row in table.rows]
    rates = [row.group.spec.train.lr if row.kind is Kind.TRAINED else None for row in table.rows]
    columns: list[tuple[str, str, list[Any], Callable[[Any], str]]] = [
        ("stored", "parameters of the adapter", [p.stored for p in parameters], count),
        ("% of base", "stored parameters in percent of the base model's", [p.percent for p in parameters], share),
        ("active", "parameters of one task's folded LoRA", [p.active for p in parameters], count),
        ("lr", "learning rate", rates, lambda lr: f"{lr:g}"),
        ("training", "training time of one seed, in seconds", [row.seconds for row in table.rows], duration),
        ("tokens", "training tokens of one seed", [_tokens(row) for row in table.rows], count),
        ("tokens/s", "training speed", [row.tokens_per_second for row in table.rows], number),
        ("memory", "peak of the training", [row.memory for row in table.rows], size),
        ("routing", "prompts routed to their own task, in percent", [r.router_accuracy for r in table.rows], percent),
    ]
    if limit is not None:
        within = [None if p.percent is None else int(p.percent <= limit.percent) for p in parameters]
        columns.insert(2, (f"≤ {limit.percent:g} %", limit.source, within, lambda found: "yes" if found else "no"))
    return [
        {"head": head, "title": title, "values": values, "texts": [MISSING if v is None else text(v) for v in values]}
        for head, title, values, text in columns
    ]


def _why(run: ScoredRun, task: str) -> str | None:
    """Why a run has no score of a task; None if it has one."""
    score = run.table.tasks.get(task)
    if score is None:
        return f"{run.directory.name} was not evaluated on this task"
    if score.value is not None:
        return None
    if not score.n:
        return f"{run.directory.name} has no predictions of it, or the data withhold its targets"
    return f"{run.directory.name} has predictions of only {counted(score.n, 'example')}, not of all"


def _tokens(row: Row) -> float | None:
    """Training tokens, averaged over seeds; None without training."""
    known = [t.tokens for run in row.group.runs if (t := run.record.training) is not None]
    return sum(known) / len(known) if known and len(known) == len(row.group.runs) else None
