"""The result of ``harness validate``, as tables for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from harness.data.round_trip import RoundTrip, in_words, no_answer_survives
from harness.json_lines import quoted
from harness.reporting.numbers import MISSING

EMPTY_TARGET: Final = "empty_target"
BLANK_PROMPT: Final = "blank_prompt"
UNPARSED: Final = "unparsed_target"
NOT_OFFERED: Final = "target_not_offered"
DUPLICATE: Final = "duplicate_prompt"
LEAK: Final = "leaked_prompt"
LEAKED_CONTENT: Final = "leaked_content"
TRUNCATED: Final = "truncated"
_TARGET_WIDTH: Final = 60  # characters
FLAWS: Final = (EMPTY_TARGET, BLANK_PROMPT, UNPARSED, NOT_OFFERED, DUPLICATE, LEAK, LEAKED_CONTENT, TRUNCATED)

_MEANING: Final = {
    EMPTY_TARGET: "the target is empty, so the example is neither trained on nor scored",
    BLANK_PROMPT: "the prompt is blank",
    UNPARSED: "the task's parser cannot read the target, so no prediction can be correct",
    NOT_OFFERED: "the target is not one of the choices",
    DUPLICATE: "the same prompt occurs earlier in the split",
    LEAK: "the same prompt occurs in another split",
    LEAKED_CONTENT: "the same content occurs in another split, in another template",
    TRUNCATED: "longer than {max_length} tokens, so training removes the middle of the prompt or the end of the target",
}


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Numbers of tokens: mean, quantiles and maximum."""

    mean: float
    p50: int
    p95: int
    p99: int
    max: int


@dataclass(frozen=True, kw_only=True)
class TaskSplit:
    """One task in one split.

    n: number of examples. counts: number of examples with each of ``FLAWS``; None for TRUNCATED without a maximum
    length. prompt, target: None without a tokenizer or without examples.
    """

    task: str
    split: str
    n: int
    counts: Mapping[str, int | None]
    prompt: Lengths | None
    target: Lengths | None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One example with a flaw.

    kind: one of ``FLAWS``. where: "file:line" if the suite can locate it. note: which example has the same prompt.
    """

    kind: str
    split: str
    task: str
    id: str
    where: str | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """The result of a validation.

    errors: for each split that cannot be used, the reason. absent: splits that the folder does not have. withheld:
    splits without any target, such as published test files. findings: at most ``limit`` of each kind and split, while
    ``tasks`` has the counts of all. round_trips: with a tokenizer, what it changes in the targets. targets: the first
    different targets of each task.
    """

    suite: str
    source: str
    max_length: int | None
    tasks: tuple[TaskSplit, ...]
    findings: tuple[Finding, ...]
    errors: Mapping[str, str]
    withheld: tuple[str, ...]
    remarks: tuple[str, ...]
    absent: tuple[str, ...] = ()
    round_trips: tuple[RoundTrip, ...] = ()
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether a split cannot be read, or no prediction could be correct with this tokenizer."""
        return bool(self.errors) or no_answer_survives(self.round_trips)

    @property
    def totals(self) -> dict[str, int]:
        """The number of flaws of each kind; empty targets of splits in ``withheld`` are not counted."""
        return {kind: sum(self.count(task, kind) or 0 for task in self.tasks) for kind in FLAWS}

    def count(self, task: TaskSplit, kind: str) -> int | None:
        """The number of flaws of one kind in one task and split; None if it was not checked."""
        return None if kind == EMPTY_TARGET and task.split in self.withheld else task.counts[kind]


def render(report: ValidationReport) -> str:
    """The report as plain text: unusable splits, numbers of examples, lengths, remarks and flaws."""
    parts = [f"{report.suite}: {report.source}"]
    parts += [f"{split} cannot be used: {reason}" for split, reason in report.errors.items()]
    if report.tasks:
        parts.append("Number of examples\n" + _examples(report))
    if any(task.prompt is not None for task in report.tasks):
        parts.append("Lengths in tokens\n" + _length_table(report))
    if report.targets:
        parts.append("First targets\n" + "\n".join(_targets(report)))
    if any(report.totals.values()):
        parts.append("Number of examples with a flaw\n" + _flaw_table(report))
    return "\n\n".join([*parts, *_remarks(report), *_listings(report)]) + "\n"


def to_json(report: ValidationReport) -> str:
    """The report as JSON: its fields, and ``totals``, the number of flaws of each kind."""
    return json.dumps({**dataclasses.asdict(report), "totals": report.totals}, ensure_ascii=False, indent=2)


def _examples(report: ValidationReport) -> str:
    """Tasks by splits."""
    splits = list(dict.fromkeys(task.split for task in report.tasks))
    n = {(task.task, task.split): task.n for task in report.tasks}
    names = dict.fromkeys(task.task for task in report.tasks)
    return _table(["task"], splits, [[name, *(str(n[name, split]) for split in splits)] for name in names])


def _targets(report: ValidationReport) -> Iterator[str]:
    """One line for each task; quotes show white space and line breaks."""
    for task, targets in report.targets.items():
        yield f"{task}: {', '.join(quoted(target, _TARGET_WIDTH) for target in targets)}"


def _length_table(report: ValidationReport) -> str:
    head = [f"{text}\n{value}" for text in ("prompt", "target") for value in ("mean", "50 %", "95 %", "99 %", "max")]
    lines = [[t.task, t.split, *_length_cells(t.prompt), *_length_cells(t.target)] for t in _by_task(report) if t.n]
    return _table(["task", "split"], head, lines)


def _flaw_table(report: ValidationReport) -> str:
    """The tasks, splits and kinds that have flaws."""
    kinds = [kind for kind, n in report.totals.items() if n]
    lines = []
    for task in _by_task(report):
        counts = [report.count(task, kind) for kind in kinds]
        if any(counts):
            lines.append([task.task, task.split, *(MISSING if n is None else str(n) for n in counts)])
    return _table(["task", "split"], [kind.replace("_", "\n") for kind in kinds], lines)


def _by_task(report: ValidationReport) -> list[TaskSplit]:
    order = {name: i for i, name in enumerate(dict.fromkeys(task.task for task in report.tasks))}
    return sorted(report.tasks, key=lambda task: order[task.task])


def _table(names: Sequence[str], numbers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    aligned = [*["left"] * len(names), *["right"] * len(numbers)]
    return tabulate(lines, [*names, *numbers], tablefmt="simple", colalign=aligned, disable_numparse=True)


def _length_cells(lengths: Lengths | None) -> list[str]:
    if lengths is None:
        return [MISSING] * 5
    return [f"{lengths.mean:.1f}", *(str(v) for v in (lengths.p50, lengths.p95, lengths.p99, lengths.max))]


def _remarks(report: ValidationReport) -> Iterator[str]:
    withheld = [f"{split}: no example has a target, so predictions cannot be scored" for split in report.withheld]
    if withheld or report.remarks:
        yield "\n".join([*withheld, *report.remarks])


def _listings(report: ValidationReport) -> Iterator[str]:
    """For each kind of flaw its meaning and the examples that have it."""
    totals = {kind: n for kind, n in report.totals.items() if n}
    lines = in_words(report.round_trips)
    if lines:
        yield "\n".join(lines)
    if not totals and not report.errors and not lines:
        checked = dict.fromkeys(task.split for task in report.tasks)
        yield f"No flaws found in {' and '.join(checked)}." if report.absent else "No flaws found."
    for kind, n in totals.items():
        listed = [f for f in report.findings if f.kind == kind]
        some = f", {len(listed)} listed" if len(listed) < n else ""
        lines = [f"{kind.replace('_', ' ')} ({n}{some}): {_MEANING[kind].format(max_length=report.max_length)}"]
        for f in listed:
            place = f" at {f.where}" if f.where else ""
            lines.append(f"  {f.split} {f.task} {f.id}{place}" + (f": {f.note}" if f.note else ""))
        yield "\n".join(lines)
