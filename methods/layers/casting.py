"""Factors in the dtype of the hidden states, with ranks that are multiples of 8 where others are slow.

In half precision a GPU reads rows of 16 bytes at once, and has slower kernels for rows whose size is not a multiple of
that. In training the rank of a layer is therefore padded with zeros when its factors are cast. Padded rows have a
product of zero and get no gradient: parameters, optimiser, exports and counts of parameters have the true rank.

Shapes: E experts of rank r, A (E r, d_in) and B (d_out, E r).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from methods.layers.routing import Route

ALIGNED_RANK: Final = 8
_HALF: Final = (torch.float16, torch.bfloat16)


def rank_multiple(route: Route, device: torch.device, dtype: torch.dtype) -> int:
    """The multiple to which ranks are padded in a pass over hidden states of this dtype; 1 for none.

    It is ``route.rank_multiple`` where that is set; otherwise 8 in half precision on a GPU while gradients are
    recorded. A decoded token is a few vectors, whose products cost less than the launches of padding.
    """
    if route.rank_multiple is not None:
        return route.rank_multiple
    padded = device.type != "cpu" and dtype in _HALF and torch.is_grad_enabled()
    return ALIGNED_RANK if padded else 1


def padded_experts(n_experts: int, rank: int, multiple: int) -> int:
    """The least number of experts, ``n_experts`` or more, whose ranks add up to a multiple."""
    step = multiple // math.gcd(multiple, rank)
    return -(-n_experts // step) * step


@dataclass(frozen=True, kw_only=True, eq=False)
class CastFactors:
    """a (R, d_in) and b (d_out, R) in the dtype of the hidden states, with the padded rank R, of ``n_experts``."""

    a: Tensor
    b: Tensor
    n_experts: int = 1


def cast_one(a: Tensor, b: Tensor, x: Tensor, route: Route) -> CastFactors:
    """The factors of one plain LoRA (r, d_in) and (d_out, r) for a pass over x; R is the next multiple of its rank."""
    more = -b.shape[1] % rank_multiple(route, x.device, x.dtype)
    return CastFactors(a=_below(a.to(x.dtype), more, route), b=_beside(b.to(x.dtype), more, route))


def cast_experts(a: Tensor, b: Tensor, rank: int, x: Tensor, route: Route) -> CastFactors:
    """The stacked factors of experts of this rank for a pass over x, padded by experts of zeros.

    The experts may share one A (r, d_in), which then is not padded, and neither is B.
    """
    n_experts = b.shape[1] // rank
    if n_experts == 1:
        return cast_one(a, b, x, route)
    multiple = rank_multiple(route, x.device, x.dtype) if len(a) == b.shape[1] else 1
    padded = padded_experts(n_experts, rank, multiple)
    more = (padded - n_experts) * rank
    a, b = _below(a.to(x.dtype), more, route), _beside(b.to(x.dtype), more, route)
    return CastFactors(a=a, b=b, n_experts=padded)


def pad_weights(g: Tensor, n_experts: int) -> Tensor:
    """The weights (..., E) of experts, with the weight 0 for those that ``cast_experts`` added."""
    return g if g.shape[-1] == n_experts else pad(g, (0, n_experts - g.shape[-1]))


def _below(a: Tensor, more: int, route: Route) -> Tensor:
    """``a`` with ``more`` rows of zeros below it. The zeros are kept, so that this is one launch.

    What is padded has been cast: the gradient is cast back from a part of a matrix to a whole one, without a copy more.
    """
    return torch.cat([a, route.zeros(a, more, a.shape[1])]) if more else a


def _beside(b: Tensor, more: int, route: Route) -> Tensor:
    """``b`` with ``more`` columns of zeros at its end."""
    return torch.cat([b, route.zeros(b, b.shape[0], more)], 1) if more else b
