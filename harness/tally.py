"""What training has cost and reached so far, counted over processes and restarts in ``Progress``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.checkpoint import Progress
from harness.encode import Encoded
from harness.loop import StepResult
from harness.record import TrainingSummary

_RECENT = 10  # losses whose mean is the final one


def count(progress: Progress, result: StepResult, rows: Sequence[Encoded], waited: float) -> None:
    """Add one step. waited: seconds that it waited for its rows."""
    added = {
        "steps": 1,
        "examples": len(rows),
        "tokens": result.n_tokens,
        "target_tokens": result.n_target_tokens,
        "seconds": result.seconds + waited,
        "wait_seconds": waited,
        "n_middle_cut": sum(r.cut for r in rows),
    }
    for key, value in added.items():
        progress.counters[key] = progress.counters.get(key, 0) + value
    progress.recent_losses = [*progress.recent_losses, result.loss][-_RECENT:]


def count_peak(progress: Progress, peak: int | None) -> None:
    """Keep the largest peak of memory, in bytes; None where it is not known."""
    if peak is not None:
        progress.counters["peak_memory_bytes"] = max(peak, progress.counters.get("peak_memory_bytes", 0))


def speed(progress: Progress) -> float:
    """Tokens a second since the run was begun."""
    return progress.counters["tokens"] / max(1e-9, progress.counters["seconds"])


def log_line(stage: str, step: int, result: StepResult) -> Mapping[str, Any]:
    """A step's line of train.jsonl; ``step`` counts from 1."""
    return {
        "stage": stage,
        "step": step,
        "loss": result.loss,
        "lr": result.lr,
        "grad_norm": result.grad_norm if math.isfinite(result.grad_norm) else None,
        "tokens": result.n_tokens,
        "seconds": round(result.seconds, 4),
        "tasks": {t: round(v, 5) for t, v in result.by_task.items()},
    }


def summary(progress: Progress, memory_estimate: int | None, micro_tokens: int, packed: bool | None) -> TrainingSummary:
    """For the record."""
    counters, recent = progress.counters, progress.recent_losses
    seconds = counters.get("seconds", 0.0)
    peak = counters.get("peak_memory_bytes")
    return TrainingSummary(
        steps=int(counters.get("steps", 0)),
        examples=int(counters.get("examples", 0)),
        target_tokens=int(counters.get("target_tokens", 0)),
        tokens=int(counters.get("tokens", 0)),
        seconds=seconds,
        wait_seconds=counters.get("wait_seconds", 0.0),
        tokens_per_second=counters["tokens"] / seconds if seconds else None,
        peak_memory_bytes=None if peak is None else int(peak),
        memory_estimate_bytes=memory_estimate,
        micro_tokens=micro_tokens,
        packed=packed,
        final_loss=sum(recent) / len(recent) if recent else None,
        n_middle_cut=int(counters.get("n_middle_cut", 0)),
    )
