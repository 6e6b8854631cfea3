"""A leaderboard for programs: CSV and JSON, values between 0 and 1."""

from __future__ import annotations

import csv
import io
from typing import Any, Final

from harness.leaderboard.markdown import verdicts
from harness.leaderboard.tables import Cell, Kind, Leaderboard, Noise, Row, Sweep
from harness.scoring.statistics import Estimate
from harness.scoring.verdict import transfer_in_words

_COLUMNS: Final = (
    *("table", "suite", "protocol", "data", "model", "split", "prompt", "sample"),
    *("rank", "method", "kind", "ablation", "task", "value", "low", "high", "sd", "seeds"),
    *("stored", "active", "percent", "lr", "seconds", "tokens_per_second", "peak_memory_bytes", "flags"),
)


def to_csv(board: Leaderboard) -> str:
    """One line for each row and task (and the mean), values between 0 and 1, missing empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for number, table in enumerate(board.tables, start=1):
        spec = table.spec
        model = None if spec.model is None else spec.model.label
        head = [number, board.suite, board.protocol, spec.data.label, model, spec.eval.split, spec.prompt, table.sample]
        for row in table.rows:
            size = row.group.runs[0].record.parameters
            lr = row.group.spec.train.lr if row.kind is Kind.TRAINED else None
            cost = [size.stored, size.active, size.percent, lr, row.seconds, row.tokens_per_second, row.memory]
            for task, cell in (("mean", row.mean), *row.cells.items()):
                e = cell.estimate
                ends = [None, None] if e is None else [e.low, e.high]
                name = [row.rank, row.label, row.kind.value, row.beneath, task, cell.value, *ends, cell.sd]
                line = [*head, *name, len(row.group.runs), *cost, "; ".join(row.flags)]
                writer.writerow([_no_formula(value) for value in line])
    return text.getvalue()


def to_json(board: Leaderboard) -> dict[str, Any]:
    """The leaderboard as JSON values; values between 0 and 1, missing as null."""
    return {
        "suite": board.suite,
        "protocol": board.protocol,
        "tables": [
            {
                "data": t.spec.data.model_dump(mode="json"),
                "model": None if t.spec.model is None else t.spec.model.model_dump(mode="json"),
                "split": t.spec.eval.split,
                "rows_per_task": t.spec.eval.per_task,
                "prompt": t.spec.prompt,
                "shots": t.spec.shots,
                "sample": t.sample,
                "headlines": dict(t.headlines),
                "mean_of": list(t.mean_of),
                "rows": [_row_json(row) for row in t.rows],
                "verdicts": verdicts(t),
                "transfer": [] if t.sample else [transfer_in_words(*found) for found in t.transfers],
                "noise": None if t.noise is None else _noise_json(t.noise),
                "sweeps": [_sweep_json(sweep) for sweep in t.sweeps],
            }
            for t in board.tables
        ],
        "orientation": [
            *(figure.model_dump() for figure in board.orientation),
            *({"backend": row.group.spec.backend, **_row_json(row)} for row in board.elsewhere),
        ],
        "unfinished": [{"run": run.name, "reason": run.reason} for run in board.unfinished],
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "rank": row.rank,
        "method": row.label,
        "kind": row.kind.value,
        "ablation_beneath": row.beneath,
        "runs": [run.directory.name for run in row.group.runs],
        "seeds": [run.record.spec.seed for run in row.group.runs],
        "mean": _cell_json(row.mean),
        "delta": None if row.delta is None else _estimate_json(row.delta),
        "tasks": {task: _cell_json(cell) for task, cell in row.cells.items()},
        "unparsed": dict(row.unparsed),
        "parameters": row.group.runs[0].record.parameters.model_dump(mode="json"),
        "lr": row.group.spec.train.lr if row.kind is Kind.TRAINED else None,
        "seconds": row.seconds,
        "tokens_per_second": row.tokens_per_second,
        "peak_memory_bytes": row.memory,
        "tuning": None if row.tuning is None else row.tuning.model_dump(mode="json"),
        "flags": list(row.flags),
    }


def _noise_json(found: Noise) -> dict[str, Any]:
    gap = None if found.difference is None else _estimate_json(found.difference)
    runs = {"null": found.null.runs, "row": found.row.runs}
    return {"difference": gap, **{k: [r.directory.name for r in v] for k, v in runs.items()}}


def _sweep_json(found: Sweep) -> dict[str, Any]:
    points = []
    for point in found.points:
        mean = point.group.estimate(None)
        points.append(
            {
                "at": dict(point.at),
                "runs": [r.directory.name for r in point.group.runs],
                "mean": point.group.value(None),
                "ci95": None if mean is None else [mean.low, mean.high],
            }
        )
    return {"name": found.name, "method": found.method, "keys": list(found.keys), "points": points}


def _cell_json(cell: Cell) -> dict[str, Any]:
    ends = None if cell.estimate is None else [cell.estimate.low, cell.estimate.high]
    flags = {"best": cell.best, "tied_with_best": cell.tied, "no_train": cell.no_train}
    return {"value": cell.value, "ci95": ends, "sd": cell.sd, **flags}


def _estimate_json(found: Estimate) -> dict[str, Any]:
    return {"value": found.value, "ci95": [found.low, found.high], "shown": found.shown, "sees": found.sees}


def _no_formula(value: object) -> object:
    """A spreadsheet runs a text that begins like a formula; a leading apostrophe makes it a text again."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
