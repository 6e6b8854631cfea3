"""The report of `harness bench --launches`, as text and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from tabulate import tabulate

from harness.bench.launches import BLOCKS, DecodedRow, LaunchReport, LaunchRow
from harness.reporting.numbers import MISSING, number

MOST_WAITS: Final = 2
"""The goal for the waits of a training step."""


def to_json(report: LaunchReport) -> dict[str, Any]:
    """The report, with the number of blocks that its counts are for."""
    return {"blocks": BLOCKS, **dataclasses.asdict(report)}


def render(report: LaunchReport) -> str:
    """A table of training stages, a table of decoding, and what the columns mean."""
    head = (
        f"Counted on a CPU, for a Llama of {BLOCKS} blocks with bfloat16 weights: forward and backward of a packed "
        f"micro-batch of {report.n_tasks} tasks. Frozen model: {report.frozen} launches. PEFT's LoRA, float32 factors "
        f"under autocast: {MISSING if report.peft is None else report.peft}."
    )
    trained = [_trained(name, row) for name, rows in report.rows.items() for row in rows]
    decoded = [_decoded(name, row) for name, rows in report.decoded.items() for row in rows]
    return "\n\n".join(
        [
            head,
            _table(["method", "stage", "launches", "per block", "/ PEFT", "waits", "blocking copies"], trained),
            _table(["method", "decoding", "launches per token", "waits per token", "8 prompts", "2 prompts"], decoded),
            "\n".join(_notes(report)),
        ]
    )


def _table(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers, disable_numparse=True, stralign="right")


def _trained(name: str, row: LaunchRow) -> list[str]:
    ratio = MISSING if row.to_peft is None else number(row.to_peft, 3)
    return [name, row.stage, str(row.whole), str(row.block), ratio, str(row.waits), str(row.blocking_copies)]


def _decoded(name: str, row: DecodedRow) -> list[str]:
    return [name, row.kind, str(row.launches), number(row.waits, 3), *map(str, row.prompts)]


def _notes(report: LaunchReport) -> list[str]:
    notes = [
        "launches: operations that start a kernel on a GPU. waits: results that the host reads, in a whole optimiser "
        f"step (goal: at most {MOST_WAITS}). blocking copies: from ordinary host memory, for which the host waits too.",
        "8 prompts, 2 prompts: launches of a block to read this many prompts and put them into the cache.",
    ]
    if report.peft is None:
        notes.append("/ PEFT is missing: PEFT is not installed: pip install 'mtlora-harness[peft]'.")
    places = {place for rows in report.rows.values() for row in rows for place in row.places}
    notes += [f"waits at {place}" for place in sorted(places)]
    return notes
