"""Micro-batches: rows of similar length side by side, and logits only where there is a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.encode import Encoded

IGNORED = -100  # the label of positions without a target; labels go by position, never by token id


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One forward pass of B rows, left-padded to S tokens; the last K positions hold every target.

    labels: (B, K) or IGNORED. weights: (B,) of each target token's loss. routes: (B,) task indices.
    """

    inputs: Mapping[str, Any]
    labels: Tensor
    weights: Tensor
    routes: Tensor

    @property
    def n_rows(self) -> int:
        return int(self.labels.shape[0])


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


def split(rows: Sequence[Encoded], micro_tokens: int) -> list[list[int]]:
    """Positions of the rows of each micro-batch: by length, at most ``micro_tokens`` padded tokens (or one row)."""
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * len(rows[batches[-1][0]]) <= micro_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def collate(
    rows: Sequence[Encoded], routes: Sequence[int], weights: Sequence[float], device: torch.device, seq2seq: bool
) -> Batch:
    """Rows as tensors. Encoder-decoder models get the prompt in the encoder and the target in the decoder."""
    build = _seq2seq if seq2seq else _causal
    inputs, labels = build(rows)
    return Batch(
        inputs={k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()},
        labels=labels.to(device),
        weights=torch.tensor(weights, dtype=torch.float64, device=device),
        routes=torch.tensor(routes, dtype=torch.long, device=device),
    )


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of every target position, (B, K), in float32 or better; 0 where there is no target."""
    logits = model(**batch.inputs).logits
    n_targets = batch.labels.shape[1]
    if "decoder_input_ids" not in batch.inputs:
        logits = logits[:, :-1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(-1, n_targets)


def _pad(rows: Sequence[Sequence[int]], value: int, left: bool) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor(
        [[value] * (width - len(r)) + [*r] if left else [*r] + [value] * (width - len(r)) for r in rows]
    )


def _causal(rows: Sequence[Encoded]) -> tuple[dict[str, Any], Tensor]:
    tokens = [(*r.prompt, *r.target) for r in rows]
    mask = _pad([[1] * len(t) for t in tokens], 0, left=True)
    labels = _pad([r.target for r in rows], IGNORED, left=True)
    inputs: dict[str, Any] = {
        "input_ids": _pad(tokens, 0, left=True),
        # The position before the first target predicts it; the last position predicts nothing.
        "logits_to_keep": labels.shape[1] + 1,
        "use_cache": False,
    }
    if not bool(mask.all()):
        inputs |= {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    return inputs, labels


def _seq2seq(rows: Sequence[Encoded]) -> tuple[dict[str, Any], Tensor]:
    labels = _pad([r.target for r in rows], IGNORED, left=False)
    start = torch.zeros((len(rows), 1), dtype=torch.long)  # T5 and its relatives start decoding from token 0
    inputs = {
        "input_ids": _pad([r.prompt for r in rows], 0, left=False),
        "attention_mask": _pad([[1] * len(r.prompt) for r in rows], 0, left=False),
        "decoder_input_ids": torch.cat([start, labels[:, :-1].clamp(min=0)], dim=1),
        "use_cache": False,
    }
    return inputs, labels
