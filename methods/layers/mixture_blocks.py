"""Mixtures of whole MLP blocks: every expert has a low-rank update of each of the block's layers.

A block is down(f(up_1(x), up_2(x))) with f between its layers, such as act(gate(x)) * up(x). The first layers return a
state for each of the k experts that a token uses, in a dimension of its own, (..., k, d_ff); f, which works on single
numbers, is applied to each; the last layer weighs and adds them. As W2 is linear, it is applied to the weighted sum,
once for each token, and not once for each expert.

Shapes: (..., d) input vectors (tokens), E experts of rank r, k of them for each token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot

from harness.errors import NotFoldable
from harness.method import LoRAFactors
from methods.layers.linear import AdaptedLinear, add_product
from methods.layers.routing import State
from methods.layers.target import ExpertFactors, TargetModule
from methods.layers.token_gates import TokenWeights, TopKGate


def is_up(target: TargetModule) -> bool:
    """Whether the layer is one of the first layers of an MLP block."""
    down = last_of_block(target.siblings)
    return down is not None and down is not target.linear


def is_down(target: TargetModule) -> bool:
    """Whether the layer is the last one of an MLP block."""
    return last_of_block(target.siblings) is target.linear


def last_of_block(layers: Mapping[str, nn.Linear]) -> nn.Linear | None:
    """The last layer of an MLP block (d_ff to d), if its linear layers are one; otherwise None.

    The others are two layers from d to d_ff, or one of this width or twice it (both in one). Attention has more layers,
    or other widths.
    """
    for name, down in reversed(list(layers.items())):
        widths = [(o.in_features, o.out_features) for other, o in layers.items() if other != name]
        d, d_ff = down.out_features, down.in_features
        if widths in ([(d, d_ff)], [(d, 2 * d_ff)], [(d, d_ff), (d, d_ff)]):
            return down
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertChoice:
    """The experts of each token (..., k), as indices, and their weights, which sum to 1."""

    experts: Tensor
    weights: Tensor

    def slots(self, n_experts: int, rank: int, dtype: torch.dtype) -> Tensor:
        """(..., k, E r): 1 for the r inner products of each of the experts, otherwise 0."""
        return one_hot(self.experts, n_experts).to(dtype).repeat_interleave(rank, -1)


class BlockGate(TopKGate):
    """The k likeliest experts of each token, chosen once for all layers of a block; W is drawn from N(0, 0.02^2).

    balanced: keep what the gate computed in a training step, for the load balance.
    """

    def __init__(self, target: TargetModule, n_experts: int, top_k: int, *, balanced: bool) -> None:
        super().__init__(target, n_experts, top_k)
        rows = [
            torch.empty(target.linear.in_features).normal_(0, 0.02, generator=target.generator(f"router.{k}"))
            for k in range(n_experts)
        ]
        self.weight = nn.Parameter(torch.stack(rows))
        self.balanced = balanced
        self.weights_of_step: TokenWeights | None = None
        self._input: Tensor | None = None
        self._choice: ExpertChoice | None = None

    def choose(self, x: Tensor) -> ExpertChoice:
        """The choice for the input of a block, computed by the first of its layers."""
        if self._choice is None or self._input is not x:
            found: TokenWeights = self(x)
            if self.balanced and self.training and torch.is_grad_enabled():
                # Under gradient checkpointing this runs again in backward, when the load balance is already computed.
                self.weights_of_step = found
            weights, experts = found.g.topk(self.top_k, -1)
            self._input, self._choice = x, ExpertChoice(experts=experts, weights=weights)
        return self._choice

    def end(self) -> ExpertChoice:
        """The choice for the block's last layer, which ends it. Raises: RuntimeError outside a block."""
        choice, self._input, self._choice = self._choice, None, None
        if choice is None:
            raise RuntimeError("the last layer of an MLP block was called before the first ones")
        return choice


class BlockLinear(AdaptedLinear):
    """One layer of a block. factors: A (E r, d_in) and B (d_out, E r). gate: of the block."""

    drops_input = False

    def __init__(
        self, target: TargetModule, factors: ExpertFactors, gate: BlockGate, *, rank: int, scale: float
    ) -> None:
        super().__init__(target)
        self.a, self.b = factors.a, factors.b
        self.gate = gate
        self.rank, self.scale = rank, scale

    def factors(self) -> Mapping[str, nn.Parameter]:
        return {"A": self.a, "B": self.b}

    def fold(self, task: int) -> LoRAFactors:
        raise NotFoldable(
            f"the token gate of {self.name} weighs the experts of each token by its hidden state, so no plain LoRA "
            "equals them: predict with `harness predict` instead, or choose a method that folds"
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.route.state is not State.ROUTED:
            return super().forward(x)
        return self.mixed(x)

    def mixed(self, x: Tensor) -> Tensor:
        """The output in the routed state."""
        raise NotImplementedError


class UpLinear(BlockLinear):
    """A first layer: x (..., d) to W x + scale B_e A_e drop(x) for the k experts e of each token, (..., k, d_ff)."""

    def mixed(self, x: Tensor) -> Tensor:
        self.require_labels(x)
        choice = self.gate.choose(x)
        out: Tensor = self.base(x)[..., None, :]
        slots = choice.slots(len(self.gate.weight), self.rank, x.dtype)
        z = linear(self.drop(x), self.a.to(x.dtype))[..., None, :] * slots
        wide = out.expand(*slots.shape[:-1], out.shape[-1]).flatten(0, -2)  # a copy, which may be written to
        return add_product(wide, z, self.b.to(x.dtype), self.scale).view(*slots.shape[:-1], -1)


class DownLinear(BlockLinear):
    """The last layer: h (..., k, d_ff) to sum_e g_e (W h_e + scale B_e A_e drop(h_e)), (..., d)."""

    def mixed(self, x: Tensor) -> Tensor:
        choice = self.gate.end()
        weights = choice.weights.to(x.dtype)[..., None]
        together = (x * weights).sum(-2)
        self.require_labels(together)
        out = self._base(together)
        slots = choice.slots(len(self.gate.weight), self.rank, x.dtype)
        z = (linear(self.drop(x), self.a.to(x.dtype)) * slots * weights).sum(-2)
        return add_product(out, z, self.b.to(x.dtype), self.scale).view(*together.shape[:-1], -1)
