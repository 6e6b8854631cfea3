"""What a run's clusters cost together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.record import GenerationSummary, TrainingSummary


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


def answered_together(parts: Sequence[GenerationSummary | None]) -> GenerationSummary | None:
    """Sums; None where no model was asked."""
    known = [p for p in parts if p is not None]
    if not known:
        return None
    tokens = [p.tokens for p in known if p.tokens is not None]
    return GenerationSummary(
        tokens=sum(tokens) if len(tokens) == len(known) else None,
        seconds=sum(p.seconds for p in known),
        halved=sum(p.halved for p in known),
        unfolded=tuple(t for p in known for t in p.unfolded),
    )


def _largest(values: Iterable[int | None]) -> int | None:
    return max((v for v in values if v is not None), default=None)
