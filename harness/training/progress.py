"""The progress of a training, and its cost over all its processes and restarts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from harness.data.encoding import Encoded
from harness.store.record import TrainingSummary
from harness.training.step import StepResult

# The final loss of a record is the mean over this many last steps.
_RECENT: Final = 10

# Names of fields in progress.json that differ from those in code; checkpoints of older versions have them.
_JSON_NAMES: Final = {"dev_scores": "looks"}


@dataclass(kw_only=True)
class Progress:
    """The part of a checkpoint that is not tensors; its values are JSON values.

    stage, step: the unfinished stage, and how many of its steps are done.
    finished: names of finished stages. remembered: what methods stored with ``Trainer.remember``.
    counters: totals since the run began, such as steps, tokens and seconds. recent_losses: those of the last steps.
    log_bytes: the length of train.jsonl at this point. scaler: the state of the loss scaler of fp16.
    micro_tokens: the maximum number of tokens of a micro-batch, if it was reduced for lack of memory.
    dev_scores: (step, score) of the stage's evaluations on dev, oldest first.
    balance: what the balancer of tasks has learned in the stage (``TaskWeights.state``).
    affinity: the fields of ``AffinitySums``; empty without ``train.affinity``.
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
    dev_scores: list[tuple[int, float]] = field(default_factory=list)
    balance: dict[str, Any] = field(default_factory=dict)
    affinity: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields under their names in progress.json."""
        return {_JSON_NAMES.get(name, name): value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """The inverse of ``to_json``. Raises: ValueError for fields that this version does not have."""
        fields = {_JSON_NAMES.get(f.name, f.name): f.name for f in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - fields.keys())
        if unknown:
            raise ValueError(f"progress.json has unknown fields: {', '.join(unknown)}")
        progress = cls(**{fields[key]: value for key, value in values.items()})
        progress.dev_scores = [(int(step), float(score)) for step, score in progress.dev_scores]
        return progress

    def begin_stage(self, stage: str) -> None:
        """Start a stage at step 0."""
        self.stage, self.step, self.dev_scores, self.balance = stage, 0, [], {}

    def finish_stage(self, stage: str) -> None:
        """Mark a stage as finished; then no stage is in progress."""
        if stage not in self.finished:
            self.finished.append(stage)
        self.stage, self.step, self.dev_scores, self.scaler, self.balance = None, 0, [], {}, {}

    def count_step(self, result: StepResult, sequences: Sequence[Encoded], waited_seconds: float) -> None:
        """Add one step. waited_seconds: how long it waited for its sequences."""
        self.step += 1
        added = {
            "steps": 1,
            "examples": len(sequences),
            "tokens": result.n_tokens,
            "target_tokens": result.n_target_tokens,
            "seconds": result.seconds + waited_seconds,
            "wait_seconds": waited_seconds,
            "n_middle_cut": sum(s.truncated for s in sequences),
            "n_target_cut": sum(s.target_truncated for s in sequences),
        }
        for key, value in added.items():
            self.counters[key] = self.counters.get(key, 0) + value
        self.recent_losses = [*self.recent_losses, result.loss][-_RECENT:]

    def count_search(self, seconds: float) -> None:
        """Add the time of losses that a method computes without gradients, as a search does."""
        for key in ("seconds", "search_seconds"):
            self.counters[key] = self.counters.get(key, 0.0) + seconds

    def count_peak_memory(self, peak: int | None) -> None:
        """Keep the largest peak of memory, in bytes; None if the peak is unknown."""
        if peak is not None:
            self.counters["peak_memory_bytes"] = max(peak, self.counters.get("peak_memory_bytes", 0))

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens per second since the run began."""
        seconds = self.counters["seconds"] - self.counters.get("search_seconds", 0.0)
        return self.counters["tokens"] / max(1e-9, seconds)

    def summary(self, memory_estimate: int | None, micro_tokens: int) -> TrainingSummary:
        """The costs for the record, without the layout of the micro-batches."""
        counters, recent = self.counters, self.recent_losses
        seconds = counters.get("seconds", 0.0)
        peak = counters.get("peak_memory_bytes")
        return TrainingSummary(
            steps=int(counters.get("steps", 0)),
            examples=int(counters.get("examples", 0)),
            target_tokens=int(counters.get("target_tokens", 0)),
            tokens=int(counters.get("tokens", 0)),
            seconds=seconds,
            wait_seconds=counters.get("wait_seconds", 0.0),
            tokens_per_second=self.tokens_per_second if counters.get("tokens") else None,
            peak_memory_bytes=None if peak is None else int(peak),
            memory_estimate_bytes=memory_estimate,
            micro_tokens=micro_tokens,
            final_loss=sum(recent) / len(recent) if recent else None,
            n_middle_cut=int(counters.get("n_middle_cut", 0)),
            n_target_cut=int(counters.get("n_target_cut", 0)),
            search_seconds=counters.get("search_seconds", 0.0),
        )


def log_line(stage: str, step: int, result: StepResult) -> Mapping[str, Any]:
    """The line of train.jsonl for one step; ``step`` counts from 1."""
    return {
        "stage": stage,
        "step": step,
        "loss": result.loss,
        "lr": result.lr,
        "grad_norm": result.grad_norm if math.isfinite(result.grad_norm) else None,
        "tokens": result.n_tokens,
        "seconds": round(result.seconds, 4),
        "tasks": {t: round(v, 5) for t, v in result.by_task.items()},
        **({} if result.weights is None else {"weights": {t: round(w, 5) for t, w in sorted(result.weights.items())}}),
    }


def trained_together(parts: Sequence[TrainingSummary]) -> TrainingSummary:
    """The costs of all clusters of a run: sums; the largest memory and micro-batch; the mean of the final losses."""
    tokens, seconds = sum(p.tokens for p in parts), sum(p.seconds for p in parts)
    in_steps = seconds - sum(p.search_seconds for p in parts)
    losses = [p.final_loss for p in parts if p.final_loss is not None]
    packed, attention = {p.packed for p in parts} - {None}, {p.attention for p in parts} - {None}
    return TrainingSummary(
        steps=sum(p.steps for p in parts),
        examples=sum(p.examples for p in parts),
        target_tokens=sum(p.target_tokens for p in parts),
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / in_steps if tokens and in_steps > 0 else None,
        peak_memory_bytes=_largest(p.peak_memory_bytes for p in parts),
        final_loss=sum(losses) / len(losses) if losses else None,
        n_middle_cut=sum(p.n_middle_cut for p in parts),
        n_target_cut=sum(p.n_target_cut for p in parts),
        search_seconds=sum(p.search_seconds for p in parts),
        wait_seconds=sum(p.wait_seconds for p in parts),
        memory_estimate_bytes=_largest(p.memory_estimate_bytes for p in parts),
        packed=packed.pop() if len(packed) == 1 else None,
        attention=attention.pop() if len(attention) == 1 else None,
        micro_tokens=_largest(p.micro_tokens for p in parts),
    )


def _largest(values: Iterable[int | None]) -> int | None:
    return max((v for v in values if v is not None), default=None)
