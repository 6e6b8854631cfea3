"""Likelihoods of given continuations of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.generation.cache import Tokens, accepted, pad_tokens, positions
from harness.generation.decoding import Enter
from harness.models.loading import LoadedModel, decoder_start_token


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The natural logarithm of p(continuation | prompt), summed over tokens in float32.

    greedy: greedy decoding would have generated the continuation.
    """

    value: float
    greedy: bool


@torch.no_grad()
def likelihoods(
    loaded: LoadedModel,
    prompts: Sequence[Tokens],
    continuations: Sequence[Tokens],
    enter: Enter,
    *,
    batch_size: int | None = None,
) -> list[Likelihood]:
    """The likelihood of the continuation of each prompt.

    Args:
        batch_size: sequences that share a forward pass; default: all.
    """
    found: list[Likelihood] = []
    n = len(prompts)
    for first in range(0, n, batch_size or n):
        batch = slice(first, min(first + (batch_size or n), n))
        with enter(torch.arange(batch.start, batch.stop)):
            found += _likelihoods(loaded, prompts[batch], continuations[batch])
    return found


def _likelihoods(loaded: LoadedModel, prompts: Sequence[Tokens], continuations: Sequence[Tokens]) -> list[Likelihood]:
    device, longest = loaded.device, max(map(len, continuations))
    if loaded.encoder_decoder:
        start = decoder_start_token(loaded)
        ids, mask = pad_tokens(prompts, device, left=False)
        inputs, _ = pad_tokens([[start, *c[:-1]] for c in continuations], device, left=False)
        targets, counted = pad_tokens(continuations, device, left=False)
        logits = loaded.model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs, use_cache=False).logits
    else:
        ids, mask = pad_tokens([[*p, *c] for p, c in zip(prompts, continuations, strict=True)], device, left=True)
        targets, counted = pad_tokens(continuations, device, left=True)
        extra = accepted(loaded.model, position_ids=positions(mask), logits_to_keep=longest + 1)
        logits = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits
        logits = logits[:, -longest - 1 : -1]
    each = torch.log_softmax(logits.float(), -1).gather(-1, targets[..., None])[..., 0]
    greedy = ((logits.argmax(-1) == targets) | (counted == 0)).all(1)
    sums = (each * counted).sum(1)
    return [Likelihood(value=float(v), greedy=g) for v, g in zip(sums.tolist(), greedy.tolist(), strict=True)]
