"""MultiLoRA (arXiv 2311.11501): parallel LoRAs for all tasks, with learned scales of their outputs that start at zero.

The layer is implemented after the code of MTL-LoRA (arXiv 2410.09437), which compares with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness.errors import UsageError
from harness.method import LoRAFactors, Ranks, Trait
from methods.base import AdaptedLinear, LoRAMethod, TargetModule
from methods.layers.casting import cast_one
from methods.layers.linear import add_product


class ScaledLinear(AdaptedLinear):
    """``out + scale sum_i diag(v_i) B_i A_i x``.

    Shapes: n LoRAs of rank r, A (n r, d_in), B (d_out, n r), v (n, d_out). Initially A_i and B_i are kaiming-uniform
    with a = sqrt(5), uniform in +-1 / sqrt(fan-in), and v is zero. Without ``scaling``, v is left out and B zero.
    """

    def __init__(self, target: TargetModule, n_loras: int, rank: int, scale: float, scaling: bool) -> None:
        super().__init__(target)
        factors = target.experts(range(n_loras), rank)
        self.a, self.b, self.n_loras, self.scale = factors.a, factors.b, n_loras, scale
        self.v: nn.Parameter | None = None
        if scaling:
            self.v = nn.Parameter(self.b.detach().new_zeros(n_loras, self.out_features))
            bound, shape = rank**-0.5, (self.out_features, rank)
            parts = [
                torch.empty(shape).uniform_(-bound, bound, generator=target.generator(f"{i}.B")) for i in range(n_loras)
            ]
            with torch.no_grad():
                self.b.copy_(torch.cat(parts, 1))

    def factors(self) -> Mapping[str, nn.Parameter]:
        return {"A": self.a, "B": self.b, **({} if self.v is None else {"v": self.v})}

    def scaled_b(self) -> Tensor:
        """diag(v_i) B_i of all LoRAs, (d_out, n r)."""
        if self.v is None:
            return self.b
        return (torch.unflatten(self.b, 1, (self.n_loras, -1)) * self.v.t()[:, :, None]).flatten(1)

    def delta(self, out: Tensor, x: Tensor) -> Tensor:
        cast = cast_one(self.a, self.scaled_b(), x, self.route)
        return add_product(out, linear(x, cast.a), cast.b, self.scale)

    def fold(self, task: int) -> LoRAFactors:
        return LoRAFactors(a=self.a.detach().clone(), b=self.scale * self.scaled_b().detach())


@dataclass(frozen=True, kw_only=True)
class MultiLoRA(LoRAMethod):
    """h = W0 x + alpha / expert_rank sum_i diag(v_i) B_i A_i x, the same for all tasks.

    n_loras: the number of parallel LoRAs. expert_rank: the rank of each.
    scaling: v_i is learned from zero, and B_i is random at the start. Without it B_i is zero at the start, and the sum
        is one plain LoRA of rank n_loras expert_rank.
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.FOLDS})
    summary: ClassVar[str] = "parallel LoRAs for all tasks, with output scales that start at zero"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {"no_scaling": {"scaling": False}}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"method.n_loras": 3}}
    rank_field: ClassVar[str] = "expert_rank"

    n_loras: int = 4
    expert_rank: int = 4
    scaling: bool = True

    def __post_init__(self) -> None:
        if self.n_loras < 1:
            raise UsageError(f"method.n_loras={self.n_loras}: give 1 or more")

    def ranks(self, n_tasks: int) -> Ranks:
        return Ranks(stored=self.n_loras * self.expert_rank, active=self.n_loras * self.expert_rank)

    def layer(self, target: TargetModule) -> AdaptedLinear:
        return ScaledLinear(target, self.n_loras, self.expert_rank, self.alpha / self.expert_rank, self.scaling)
