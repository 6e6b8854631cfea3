"""Micro-batches: rows side by side (padded) or behind one another (packed), and logits only where there is a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.data.encoding import Encoded
from harness.method import StepRouting

IGNORED = -100  # the label of positions without a target; labels go by position, never by token id


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One forward pass of B rows, padded to S tokens or packed into one row of S tokens, that predicts N tokens.

    labels: (N,) target tokens, or IGNORED. weights: (N,) float64, of each target's loss. tasks: (N,) task indices.
    routes: (B,) task indices of rows, or (1, S) of packed tokens; on the CPU, where adapters look at them first.
    prompts: the B tokenised prompts. owner: of the shape of ``routes``, the prompt of each; -1 for filling.
    shift: the model gives logits of one more position than is predicted (the last of each row).
    """

    inputs: Mapping[str, Any]
    labels: Tensor
    weights: Tensor
    tasks: Tensor
    routes: Tensor
    prompts: Sequence[Tensor]
    owner: Tensor
    shift: bool


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A row, its task's index, and the weight of each of its target tokens in the step's loss."""

    row: Encoded
    task: int
    weight: float


def loss_weights(rows: Sequence[Encoded], kind: str) -> list[float]:
    """The weight of one target token of each row of a step, fixed before the step (``train.loss``).

    token: every target token counts the same. example: every row. task: every task of the step.
    """
    if kind == "token":
        return [1.0] * len(rows)
    if kind == "example":
        return [1.0 / len(r.target) for r in rows]
    tokens: dict[str, int] = {}
    for row in rows:
        tokens[row.task] = tokens.get(row.task, 0) + len(row.target)
    return [1.0 / tokens[r.task] for r in rows]


def total_weight(rows: Sequence[Encoded], weights: Sequence[float]) -> float:
    """What the step's summed loss is divided by: over all micro-batches and processes."""
    return sum(w * len(r.target) for r, w in zip(rows, weights, strict=True))


def weigh(rows: Sequence[Encoded], kind: str, tasks: Sequence[str]) -> list[Weighted]:
    """Rows of one step with weights that sum, over all target tokens, to 1."""
    weights = loss_weights(rows, kind)
    total = total_weight(rows, weights)
    index = {t: i for i, t in enumerate(tasks)}
    return [Weighted(row=r, task=index[r.task], weight=w / total) for r, w in zip(rows, weights, strict=True)]


def padded(rows: Sequence[Weighted], device: torch.device) -> Batch:
    """Rows for a causal model, left-padded, so that the last positions hold every target."""
    tokens = [(*w.row.prompt, *w.row.target) for w in rows]
    mask = _pad([[1] * len(t) for t in tokens], 0, left=True)
    labels = _pad([w.row.target for w in rows], IGNORED, left=True)
    inputs: dict[str, Any] = {
        "input_ids": _pad(tokens, 0, left=True),
        # The position before the first target predicts it; the last position predicts nothing.
        "logits_to_keep": labels.shape[1] + 1,
        "use_cache": False,
    }
    if not bool(mask.all()):
        inputs |= {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    return _by_rows(rows, inputs, labels, device, shift=True)


def encoder_decoder(rows: Sequence[Weighted], device: torch.device, start: int) -> Batch:
    """Sequences for a model with the prompt in its encoder and the target in its decoder.

    start: the token that the decoder reads first; see ``harness.model.decoder_start_token``.
    """
    labels = _pad([w.row.target for w in rows], IGNORED, left=False)
    first = torch.full((len(rows), 1), start)
    inputs = {
        "input_ids": _pad([w.row.prompt for w in rows], 0, left=False),
        "attention_mask": _pad([[1] * len(w.row.prompt) for w in rows], 0, left=False),
        "decoder_input_ids": torch.cat([first, labels[:, :-1].clamp(min=0)], dim=1),
        "use_cache": False,
    }
    return _by_rows(rows, inputs, labels, device, shift=False)


def packed(rows: Sequence[Weighted], device: torch.device, multiple: int = 1) -> Batch:
    """Rows behind one another, positions starting at 0 in each; filled up to a ``multiple`` of tokens.

    A model that takes restarting positions for new sequences (checked before training, see ``harness.packing``) lets
    no row see another one, as long as no cache and no attention mask is given.
    """
    tokens: list[int] = []
    positions: list[int] = []
    routes: list[int] = []
    owner: list[int] = []
    keep: list[int] = []
    for i, w in enumerate(rows):
        first, length = len(tokens) + len(w.row.prompt), len(w.row)
        tokens += [*w.row.prompt, *w.row.target]
        positions += range(length)
        routes += [w.task] * length
        owner += [i] * length
        keep += range(first - 1, first - 1 + len(w.row.target))  # the position before a token predicts it
    empty = -len(tokens) % multiple
    inputs = {
        "input_ids": torch.tensor([tokens + [0] * empty]).to(device, non_blocking=True),
        "position_ids": torch.tensor([[*positions, *range(empty)]]).to(device, non_blocking=True),
        "logits_to_keep": torch.tensor(keep).to(device, non_blocking=True),
        "use_cache": False,
    }
    counts = torch.tensor([len(w.row.target) for w in rows])
    return Batch(
        inputs=inputs,
        labels=torch.tensor([t for w in rows for t in w.row.target]).to(device, non_blocking=True),
        weights=torch.tensor([w.weight for w in rows], dtype=torch.float64).repeat_interleave(counts).to(device),
        tasks=torch.tensor([w.task for w in rows]).repeat_interleave(counts).to(device),
        routes=torch.tensor([routes + routes[-1:] * empty]),
        prompts=[torch.tensor(w.row.prompt, device=device) for w in rows],
        owner=torch.tensor([owner + [-1] * empty], device=device),
        shift=False,
    )


def token_losses(model: Any, adapter: StepRouting, batch: Batch, reads: bool) -> Tensor:
    """Cross-entropy of every target, (N,), in float32 or better; 0 where there is no target.

    To be called within ``adapter.route(batch.routes)``. reads: the adapter is told the prompts first.
    """
    if reads:
        adapter.read(batch.prompts, batch.owner)
    logits: Tensor = model(**batch.inputs).logits
    if batch.shift:
        width = len(batch.labels) // len(batch.routes) + 1
        logits = logits[:, -width:-1]  # some models give the logits of every position whatever is asked for
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels, ignore_index=IGNORED, reduction="none")


def _by_rows(
    rows: Sequence[Weighted], inputs: Mapping[str, Any], labels: Tensor, device: torch.device, *, shift: bool
) -> Batch:
    width = labels.shape[1]
    tasks = torch.tensor([w.task for w in rows])
    weights = torch.tensor([w.weight for w in rows], dtype=torch.float64)
    return Batch(
        inputs={k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in inputs.items()},
        labels=labels.flatten().to(device),
        weights=weights.repeat_interleave(width).to(device),
        tasks=tasks.repeat_interleave(width).to(device),
        routes=tasks,
        prompts=[torch.tensor(w.row.prompt, device=device) for w in rows],
        owner=torch.arange(len(rows), device=device),
        shift=shift,
    )


def _pad(rows: Sequence[Sequence[int]], value: int, left: bool) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor(
        [[value] * (width - len(r)) + [*r] if left else [*r] + [value] * (width - len(r)) for r in rows]
    )
