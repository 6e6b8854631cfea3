"""What training has cost and reached so far, counted over processes and restarts in ``Progress``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.data.encoding import Encoded
from harness.store.record import TrainingSummary
from harness.training.step import StepResult

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


def trained_together(parts: Sequence[TrainingSummary]) -> TrainingSummary:
    """Sums; of memory and micro-batches the largest, of the final losses the mean."""
    tokens, seconds = sum(p.tokens for p in parts), sum(p.seconds for p in parts)
    losses = [p.final_loss for p in parts if p.final_loss is not None]
    packed = {p.packed for p in parts} - {None}
    return TrainingSummary(
        steps=sum(p.steps for p in parts),
        examples=sum(p.examples for p in parts),
        target_tokens=sum(p.target_tokens for p in parts),
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else None,
        peak_memory_bytes=_largest(p.peak_memory_bytes for p in parts),
        final_loss=sum(losses) / len(losses) if losses else None,
        n_middle_cut=sum(p.n_middle_cut for p in parts),
        wait_seconds=sum(p.wait_seconds for p in parts),
        memory_estimate_bytes=_largest(p.memory_estimate_bytes for p in parts),
        packed=packed.pop() if len(packed) == 1 else None,
        micro_tokens=_largest(p.micro_tokens for p in parts),
    )


def _largest(values: Iterable[int | None]) -> int | None:
    return max((v for v in values if v is not None), default=None)


@dataclass(kw_only=True)
class Progress:
    """How far training is; JSON values only.

    stage and step: the unfinished stage and its finished steps. log_bytes: the length of train.jsonl at this point.
    scaler: the state of fp16's loss scaler. micro_tokens: what out-of-memory has left of it.
    looks: the stage's scores on dev by step, oldest first.
    """

    stage: str | None = None
    step: int = 0
    finished: list[str] = field(default_factory=list)
    remembered: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    recent_losses: list[float] = field(default_factory=list)
    log_bytes: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)
    micro_tokens: int | None = None
    looks: list[tuple[int, float]] = field(default_factory=list)
