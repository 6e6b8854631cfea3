"""A leaderboard for programs: CSV and JSON, scores between 0 and 1."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from harness.leaderboard.summary import summary, verdicts
from harness.leaderboard.tables import Cell, Kind, Leaderboard, Row, SeedNoise, Sweep, Table
from harness.scoring.significance import Difference
from harness.scoring.statistics import Estimate, SeedVariance
from harness.scoring.verdict import transfer_in_words

COLUMNS: Final = [
    *("table", "suite", "protocol", "data", "model", "split", "prompt", "sample"),
    *("rank", "method", "kind", "ablation", "task", "value", "low", "high", "sd", "seeds"),
    *("stored", "active", "percent", "lr", "seconds", "tokens_per_second", "peak_memory_bytes", "flags"),
]


def to_csv(board: Leaderboard) -> str:
    """CSV with one line for each row and task, and for each row's mean; missing values are empty."""
    import pandas

    lines = [{name: _no_formula(value) for name, value in line.items()} for line in _lines(board)]
    return str(pandas.DataFrame(lines, columns=COLUMNS, dtype=object).to_csv(index=False, lineterminator="\n"))


def _lines(board: Leaderboard) -> list[dict[str, Any]]:
    return [
        {"table": number, "suite": board.suite, "protocol": board.protocol, **_table_columns(table), **line}
        for number, table in enumerate(board.tables, start=1)
        for row in table.rows
        for line in _row_lines(row)
    ]


def _table_columns(table: Table) -> dict[str, Any]:
    spec = table.spec
    return {
        "data": spec.data.label,
        "model": None if spec.model is None else spec.model.label,
        "split": spec.eval.split,
        "prompt": spec.prompt,
        "sample": table.sample,
    }


def _row_lines(row: Row) -> list[dict[str, Any]]:
    parameters = row.group.runs[0].record.parameters
    method = {"rank": row.rank, "method": row.label, "kind": row.kind.value, "ablation": row.nested}
    cost = {
        "seeds": len(row.group.runs),
        "stored": parameters.stored,
        "active": parameters.active,
        "percent": parameters.percent,
        "lr": row.group.spec.train.lr if row.kind is Kind.TRAINED else None,
        "seconds": row.seconds,
        "tokens_per_second": row.tokens_per_second,
        "peak_memory_bytes": row.memory,
        "flags": "; ".join(row.flags),
    }
    return [
        {**method, "task": task, **_scores(cell), **cost} for task, cell in (("mean", row.mean), *row.cells.items())
    ]


def _scores(cell: Cell) -> dict[str, float | None]:
    low, high = (None, None) if cell.estimate is None else (cell.estimate.low, cell.estimate.high)
    return {"value": cell.value, "low": low, "high": high, "sd": cell.sd}


def to_json(board: Leaderboard) -> dict[str, Any]:
    """The leaderboard as JSON values; scores between 0 and 1, missing values null."""
    limit = board.parameter_limit
    return {
        "suite": board.suite,
        "protocol": board.protocol,
        "parameter_limit": None if limit is None else {"percent": limit.percent, "source": limit.source},
        "tables": [_table_json(t) for t in board.tables],
        "orientation": [
            *(figure.model_dump() for figure in board.orientation),
            *({"backend": row.group.spec.backend, **_row_json(row)} for row in board.elsewhere),
        ],
        "unfinished": [{"run": run.name, "reason": run.reason} for run in board.unfinished],
    }


def _table_json(t: Table) -> dict[str, Any]:
    return {
        "data": t.spec.data.model_dump(mode="json"),
        "model": None if t.spec.model is None else t.spec.model.model_dump(mode="json"),
        "split": t.spec.eval.split,
        "examples_per_task": t.spec.eval.per_task,
        "prompt": t.spec.prompt,
        "shots": t.spec.shots,
        "sample": t.sample,
        "headlines": dict(t.headlines),
        "mean_of": list(t.mean_of),
        "rows": [_row_json(row) for row in t.rows],
        "summary": summary(t),
        "verdicts": verdicts(t),
        "transfer": [] if t.sample else [transfer_in_words(r.label, r.reference, r.gains) for r in t.transfers],
        "seed_noise": None if t.seed_noise is None else _noise_json(t.seed_noise),
        "sweeps": [_sweep_json(sweep, t.seed_variance.get(None)) for sweep in t.sweeps],
        "seed_variance": {task or "mean": asdict(shared) for task, shared in t.seed_variance.items()},
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "rank": row.rank,
        "method": row.label,
        "kind": row.kind.value,
        "nested": row.nested,
        "runs": [run.directory.name for run in row.group.runs],
        "seeds": [run.record.spec.seed for run in row.group.runs],
        "mean": _cell_json(row.mean),
        "delta": None if row.delta is None else _difference_json(row.delta),
        "tasks": {task: _cell_json(cell) for task, cell in row.cells.items()},
        "unparsed": dict(row.unparsed),
        "parameters": row.group.runs[0].record.parameters.model_dump(mode="json"),
        "lr": row.group.spec.train.lr if row.kind is Kind.TRAINED else None,
        "seconds": row.seconds,
        "tokens_per_second": row.tokens_per_second,
        "peak_memory_bytes": row.memory,
        "tuning": None if row.tuning is None else row.tuning.model_dump(mode="json"),
        "flags": list(row.flags),
        "unranked": row.unranked,
        "also_differs_in": list(row.also),
    }


def _noise_json(noise: SeedNoise) -> dict[str, Any]:
    gap = None if noise.difference is None else _estimate_json(noise.difference)
    runs = {"null": noise.null.runs, "row": noise.row.runs}
    return {"difference": gap, **{k: [r.directory.name for r in v] for k, v in runs.items()}}


def _sweep_json(sweep: Sweep, shared: SeedVariance | None) -> dict[str, Any]:
    points = []
    for point in sweep.points:
        mean = point.group.estimate(None, shared)
        points.append(
            {
                "at": dict(point.at),
                "runs": [r.directory.name for r in point.group.runs],
                "mean": point.group.value(None),
                "ci95": None if mean is None else [mean.low, mean.high],
            }
        )
    return {"name": sweep.name, "method": sweep.method, "keys": list(sweep.keys), "points": points}


def _cell_json(cell: Cell) -> dict[str, Any]:
    ends = None if cell.estimate is None else [cell.estimate.low, cell.estimate.high]
    flags = {"best": cell.best, "tied_with_best": cell.tied, "no_train": cell.no_train}
    return {"value": cell.value, "ci95": ends, "sd": cell.sd, **flags}


def _estimate_json(found: Estimate) -> dict[str, Any]:
    return {"value": found.value, "ci95": [found.low, found.high], "error": found.error, "seeds": list(found.seeds)}


def _difference_json(found: Difference) -> dict[str, Any]:
    """A difference with its test. p_adjusted: after Holm's correction for ``tests`` tests."""
    values = {} if found.estimate is None else _estimate_json(found.estimate)
    test = {"p_adjusted": found.p_adjusted, "tests": found.tests, "untested": found.untested}
    return {**values, **test, "significant": found.significant, "mdd": found.mdd}


def _no_formula(value: object) -> object:
    """Spreadsheets evaluate a text that begins like a formula; a leading apostrophe prevents it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
