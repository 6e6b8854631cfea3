"""The report of `harness bench`, as text and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from tabulate import tabulate

from harness.bench.clock import LAUNCH_BOUND, Interval
from harness.bench.measure import FROZEN, LOOP, OURS, OUT_OF_MEMORY, PEFT, BenchReport, BenchRow, Measured
from harness.reporting.numbers import MISSING, interval, number, size

MOST_TO_PEFT = 1.05
"""The goal for a gated expert layer's time over PEFT's, in steps of FROM_TOKENS or more."""

FROM_TOKENS = 8192

LEAST_FROM_LOOP = 2.5
"""The goal for the time of a plain loop over an expert layer's, on a CPU."""


def to_json(report: BenchReport) -> dict[str, Any]:
    """The report, with the goals for rows that are compared with a loop."""
    found = dataclasses.asdict(report)
    for row, entry in zip(report.rows, found["rows"], strict=True):
        entry["launch_bound"] = {name: _launch_bound(m) for name, m in row.measured.items()}
    found["goals"] = {
        "ours_to_peft": {"most": MOST_TO_PEFT, "from_tokens": FROM_TOKENS},
        "loop_to_ours": {"least": LEAST_FROM_LOOP, "device": "CPU"},
    }
    return found


def render(report: BenchReport) -> str:
    """A table with one line for each training stage of a method, then the goals and notes on the figures."""
    plan = report.plan
    head = (
        f"{report.model}, {report.n_parameters / 1e6:.0f} M parameters, {report.dtype}, {report.device}"
        f"{f', {plan.threads} threads' if report.device == 'CPU' and plan.threads > 1 else ''}. "
        f"A step: {plan.tokens} tokens in sequences of {plan.sequence_tokens}, routes of {plan.routes}, {plan.tasks} "
        f"tasks; forward, backward and optimiser. Ratios: medians of {plan.rounds} interleaved rounds "
        f"({'CPU' if report.clock == 'cpu' else 'wall'} time) and their 95 % intervals."
    )
    headers = [
        "method",
        "stage",
        "rank",
        "stored",
        "active",
        "s/step",
        "tokens/s",
        "peak",
        "/ frozen",
        "/ PEFT",
        "loop /",
    ]
    table = tabulate([_cells(row) for row in report.rows], headers, disable_numparse=True, stralign="right")
    return "\n\n".join([head, table, "\n".join(_notes(report))])


def _cells(row: BenchRow) -> list[str]:
    ours = row.measured.get(OURS)
    if ours is None:
        speed = [row.absent[OURS], MISSING, MISSING]
    else:
        speed = [number(ours.seconds, 3), f"{ours.tokens_per_second:.0f}", size(ours.peak_bytes)]
    return [
        row.method,
        row.stage,
        f"{row.stored_rank}/{row.active_rank}",
        f"{row.stored / 1e6:.2f} M",
        f"{row.active / 1e6:.2f} M",
        *speed,
        _ratio(row, FROZEN, row.ours_to_frozen),
        _ratio(row, PEFT, row.ours_to_peft),
        _ratio(row, LOOP, row.loop_to_ours),
    ]


def _ratio(row: BenchRow, other: str, found: Interval | None) -> str:
    """A ratio to another contender, or that the other one runs out of memory."""
    if found is not None:
        return interval(found.median, found.low, found.high)
    return OUT_OF_MEMORY if row.absent.get(other) == OUT_OF_MEMORY else MISSING


def _notes(report: BenchReport) -> list[str]:
    notes = [
        "frozen: the frozen model, with the backward pass to its inputs. PEFT: its LoRA with the rank that the stage "
        "trains (the stored rank, unless it trains only a part). loop: the method's experts one after the other.",
        f"Goals for methods with experts: / PEFT at most {MOST_TO_PEFT} with {FROM_TOKENS} tokens per step or more; "
        f"loop / at least {LEAST_FROM_LOOP} on a CPU.",
    ]
    missing = {why for row in report.rows for name, why in row.absent.items() if name == PEFT} - {OUT_OF_MEMORY}
    notes += [f"{name} is not measured: {why} for its adapter." for name, why in report.not_measured.items()]
    if any(OUT_OF_MEMORY in row.absent.values() for row in report.rows):
        notes.append(f"{OUT_OF_MEMORY}: this step does not fit the device. Give a smaller --tokens-per-step.")
    notes += [f"/ PEFT is missing: {why}." for why in sorted(missing)]
    for row in report.rows:
        bound = {n: m for n, m in row.measured.items() if _launch_bound(m) and n in (OURS, PEFT, LOOP)}
        if bound:
            own = ", ".join(f"{n} {m.kernel_seconds:.4f} s of {m.seconds:.4f} s" for n, m in bound.items())
            notes.append(
                f"{row.method} is bound by kernel launches ({own}): its ratios do not carry over to larger steps. "
                f"Ratios of kernel times: {_kernel_ratios(row)}."
            )
    return notes


def _launch_bound(measured: Measured) -> bool:
    kernel = measured.kernel_seconds
    return bool(kernel) and measured.seconds > LAUNCH_BOUND * float(kernel or 0)


def _kernel_ratios(row: BenchRow) -> str:
    kernels = {n: m.kernel_seconds for n, m in row.measured.items() if m.kernel_seconds}
    pairs = {"/ PEFT": (OURS, PEFT), "loop /": (LOOP, OURS)}
    found = [f"{name} {kernels[a] / kernels[b]:.3f}" for name, (a, b) in pairs.items() if {a, b} <= kernels.keys()]
    return ", ".join(found) or MISSING
