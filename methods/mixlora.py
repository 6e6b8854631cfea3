"""MixLoRA (arXiv 2404.15159, after the released code): a sparse mixture of MLP blocks, each the frozen one with LoRAs.

"MixLoRA: Enhancing Large Language Models Fine-Tuning with LoRA-based Mixture of Experts", 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from harness.errors import ModelError, UsageError
from harness.method import Ranks, Trait
from methods.base import (
    AdaptedLinear,
    LoRAAdapter,
    LoRAMethod,
    Parts,
    TargetModule,
    TaskLinear,
    linear_siblings,
    require_positive,
)
from methods.layers.mixture_blocks import BlockGate, DownLinear, UpLinear, is_down, is_up, last_of_block
from methods.layers.token_gates import Balance, TokenGatedAdapter, require_weight, stored_rank


@dataclass(frozen=True, kw_only=True)
class MixLoRA(LoRAMethod):
    """MLP(x) = sum_{e in S} p_e / (sum_{i in S} p_i) E_e(x), where E_e is the block with the LoRAs e on its layers.

    p = softmax(W_g x) for the input x of the block, and S holds the top_k largest p_e: all layers of a block use the
    same experts for a token. Each layer has W + alpha / expert_rank B_e A_e; initially B_e = 0. Every other layer, as
    those of attention, has one LoRA of the same rank for all tokens. The load balance is that of Switch Transformers,
    for each sequence and block; the released one is over the tokens of all blocks together.

    n_experts: the number of experts of each block.
    expert_rank: of each expert, and of the LoRAs of other layers.
    top_k: the number of experts of a token.
    balance: the weight of the load balance.
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset()
    summary: ClassVar[str] = "a sparse mixture of MLP blocks for each token, and one LoRA on attention"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_balance": {"balance": 0.0},
        "top_1": {"top_k": 1},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "method.n_experts": 8,
            "method.expert_rank": 16,
            "method.top_k": 2,
            "method.alpha": 32.0,
            "method.dropout": 0.05,
            "method.balance": 1e-3,
            "train.lr": 2e-4,
            "train.batch_size": 16,
            "train.epochs": 2.0,
        }
    }
    rank_field: ClassVar[str] = "expert_rank"

    n_experts: int = 8
    expert_rank: int = 8
    top_k: int = 2
    balance: float = 1e-3

    def __post_init__(self) -> None:
        require_positive(expert_rank=self.expert_rank, top_k=self.top_k, n_experts=self.n_experts)
        require_weight("method.balance", self.balance)
        if self.n_experts < self.top_k:
            raise UsageError(
                f"method.n_experts={self.n_experts}: give method.top_k={self.top_k} or more experts for each block"
            )

    def ranks(self, n_tasks: int) -> Ranks:
        """Those of a layer of an MLP block, whose layers share one router; layers of attention have less."""
        experts = self.n_experts * self.expert_rank
        return Ranks(
            stored=stored_rank(rows=experts + self.n_experts, columns=experts), active=self.top_k * self.expert_rank
        )

    def target_layers(self, model: nn.Module) -> Mapping[str, nn.Linear]:
        """The layers to adapt. Raises: UsageError for a part of an MLP block; ModelError for a model without one."""
        layers = super().target_layers(model)
        parents = linear_siblings(model)
        blocks = {parent: names for parent, names in parents.items() if last_of_block(names) is not None}
        if not blocks:
            raise ModelError(
                f"{type(model).__name__} has no MLP block of two or three linear layers, which mixlora makes experts "
                "of: choose another method (harness list), or another --model"
            )
        for parent, names in blocks.items():
            left_out = [name for name in names if name not in layers]
            if left_out and len(left_out) < len(names):
                raise UsageError(
                    f"method.targets={self.targets!r} leaves out {left_out[0]}, and adapts other layers of {parent}: "
                    "an expert has a LoRA on all layers of its block, so name all of them or none"
                )
        return layers

    def layer(self, target: TargetModule) -> AdaptedLinear:
        scale = self.alpha / self.expert_rank
        up, down = is_up(target), is_down(target)
        if not up and not down:
            return TaskLinear(target, expert_names=None, rank=self.expert_rank, scale=scale)
        factors = target.experts(range(self.n_experts), self.expert_rank)
        gate = target.shared(
            f"{target.name.rpartition('.')[0]}.gate",
            lambda: BlockGate(target, self.n_experts, self.top_k, balanced=self.balance > 0),
        )
        return (UpLinear if up else DownLinear)(target, factors, gate, rank=self.expert_rank, scale=scale)

    def adapter(self, parts: Parts) -> LoRAAdapter:
        return TokenGatedAdapter(parts, Balance(weight=self.balance, kind="switch"))
