"""What validation found, as a table for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.reporting.numbers import MISSING, or_missing

EMPTY: Final = "empty_target"
BLANK: Final = "blank_prompt"
UNPARSED: Final = "unparsed_target"
STRANGER: Final = "target_not_offered"
DUPLICATE: Final = "duplicate_prompt"
LEAK: Final = "leaked_prompt"
CUT: Final = "cut"
FLAWS: Final = (EMPTY, BLANK, UNPARSED, STRANGER, DUPLICATE, LEAK, CUT)

_MEANING: Final = {
    EMPTY: "the target is empty",
    BLANK: "the prompt is blank",
    UNPARSED: "the target does not parse: no answer could be right",
    STRANGER: "the target is none of the choices",
    DUPLICATE: "the prompt occurs earlier in the split",
    LEAK: "the prompt occurs in another split",
    CUT: "longer than the model is given: the prompt loses its middle, or the target its end",
}


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Numbers of tokens."""

    mean: float
    p50: int
    p95: int
    p99: int
    max: int


@dataclass(frozen=True, kw_only=True)
class TaskSplit:
    """One task in one split.

    counts: rows with each of ``FLAWS``; CUT is None without a maximal length. prompt, target: None without a tokenizer.
    """

    task: str
    split: str
    n: int
    counts: Mapping[str, int | None]
    prompt: Lengths | None
    target: Lengths | None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row that deserves a look.

    kind: one of ``FLAWS``. where: "file:line" where the suite can tell. note: what the row clashes with.
    """

    kind: str
    split: str
    task: str
    id: str
    where: str | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """Everything that was found.

    errors: split -> why it could not be read. withheld: splits without a single target, as published test files are.
    findings: at most ``limit`` of each kind and split; ``rows`` counts them all.
    """

    suite: str
    source: str
    max_length: int | None
    rows: tuple[TaskSplit, ...]
    findings: tuple[Finding, ...]
    errors: Mapping[str, str]
    withheld: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def totals(self) -> dict[str, int]:
        """Flaws of each kind over all tasks and splits; empty targets only where the split has others."""
        judged = {kind: [r for r in self.rows if kind != EMPTY or r.split not in self.withheld] for kind in FLAWS}
        return {kind: sum(row.counts[kind] or 0 for row in rows) for kind, rows in judged.items()}


def render(report: ValidationReport) -> str:
    """The report as plain text: what could not be read, rows and flaws by task, lengths, then the flawed rows."""
    order = {name: i for i, name in enumerate(dict.fromkeys(row.task for row in report.rows))}
    rows = sorted(report.rows, key=lambda row: order[row.task])
    parts = [f"{report.suite}: {report.source}"]
    parts += [f"{split} cannot be read: {reason}" for split, reason in report.errors.items()]
    if rows:
        head = ["rows", *(kind.replace("_", "\n") for kind in FLAWS)]
        parts.append(_table(rows, head, [[str(r.n), *(or_missing(r.counts[kind]) for kind in FLAWS)] for r in rows]))
    measured = [row for row in rows if row.prompt is not None]
    if measured:
        head = [f"{text}\n{what}" for text in ("prompt", "target") for what in ("mean", "50 %", "95 %", "99 %", "max")]
        lengths = [[*_spread(row.prompt), *_spread(row.target)] for row in measured]
        parts.append("Lengths in tokens\n" + _table(measured, head, lengths))
    return "\n\n".join([*parts, *_notes(report)]) + "\n"


def to_json(report: ValidationReport) -> str:
    """The report as JSON: its fields, and ``totals``, the findings of each kind."""
    return json.dumps({**dataclasses.asdict(report), "totals": report.totals}, ensure_ascii=False, indent=2)


def _table(rows: Sequence[TaskSplit], head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    lines = [[row.task, row.split, *mine] for row, mine in zip(rows, cells, strict=True)]
    aligned = ["left", "left", *["right"] * len(head)]
    return tabulate(lines, ["task", "split", *head], tablefmt="simple", colalign=aligned, disable_numparse=True)


def _spread(lengths: Lengths | None) -> list[str]:
    if lengths is None:
        return [MISSING] * 5
    return [f"{lengths.mean:.1f}", *(str(v) for v in (lengths.p50, lengths.p95, lengths.p99, lengths.max))]


def _notes(report: ValidationReport) -> Iterator[str]:
    remarks = [f"{split}: no row has a target, so nothing can be scored on it" for split in report.withheld]
    if remarks or report.remarks:
        yield "\n".join([*remarks, *report.remarks])
    found = {kind: n for kind, n in report.totals.items() if n}
    if not found and not report.errors:
        yield "No flaw was found."
    for kind, n in found.items():
        listed = [f for f in report.findings if f.kind == kind]
        some = f", of which {len(listed)} here" if len(listed) < n else ""
        lines = [f"{kind.replace('_', ' ')}: {n}{some} ({_MEANING[kind]})"]
        for f in listed:
            place = f" at {f.where}" if f.where else ""
            lines.append(f"  {f.split} {f.task} {f.id}{place}" + (f": {f.note}" if f.note else ""))
        yield "\n".join(lines)
