"""MoLA (arXiv 2402.08562, after the released code): the k likeliest experts of each token, more of them by depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.errors import UsageError
from harness.method import Ranks, Trait
from methods.base import AdaptedLinear, LoRAAdapter, LoRAMethod, Parts, TargetModule, require_positive
from methods.layers.token_gates import (
    Balance,
    TokenGatedAdapter,
    TokenGatedLinear,
    TopKGate,
    require_weight,
    stored_rank,
)


@dataclass(frozen=True, kw_only=True)
class MoLA(LoRAMethod):
    """h = W0 x + alpha / expert_rank sum_{e in S} p_e / (sum_{i in S} p_i) B_e A_e drop(x); initially B_e = 0.

    p = softmax(W_r x) is a token's, from x before dropout, and S holds the top_k largest p_e. The load balance is that
    of Switch Transformers, for each sequence and layer.

    n_experts: the number of experts in the layers of each of as many groups of blocks, from the input to the output.
        One number, [5], is that of all layers.
    expert_rank: of each expert. top_k: the number of experts of a token. balance: the weight of the load balance.
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset()
    summary: ClassVar[str] = "the likeliest experts of each token, and more experts in higher layers"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_balance": {"balance": 0.0},
        "equal_experts": {"n_experts": (5,)},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "method.n_experts": (2, 4, 6, 8),
            "method.expert_rank": 8,
            "method.top_k": 2,
            "method.alpha": 16.0,
            "method.dropout": 0.05,
            "method.balance": 0.0,
            "train.lr": 3e-4,
            "train.batch_size": 128,
            "train.max_length": 256,
        }
    }
    rank_field: ClassVar[str] = "expert_rank"

    n_experts: tuple[int, ...] = (2, 4, 6, 8)
    expert_rank: int = 8
    top_k: int = 2
    balance: float = 1e-3

    def __post_init__(self) -> None:
        require_positive(expert_rank=self.expert_rank, top_k=self.top_k)
        require_weight("method.balance", self.balance)
        if not self.n_experts or min(self.n_experts) < self.top_k:
            raise UsageError(
                f"method.n_experts={list(self.n_experts)}: give method.top_k={self.top_k} or more experts for each "
                "group of blocks"
            )

    def ranks(self, n_tasks: int) -> Ranks:
        """Stored is the mean over the groups of blocks."""
        mean = sum(self.n_experts) / len(self.n_experts)
        stored = stored_rank(rows=mean * (self.expert_rank + 1), columns=mean * self.expert_rank)
        return Ranks(stored=stored, active=self.top_k * self.expert_rank)

    def layer(self, target: TargetModule) -> AdaptedLinear:
        n_experts = self.n_experts[target.depth_group(len(self.n_experts))]
        gate = target.shared(f"{target.name}.gate", lambda: TopKGate(target, n_experts, self.top_k))
        factors = target.experts(range(n_experts), self.expert_rank)
        scale = self.alpha / self.expert_rank
        return TokenGatedLinear(target, factors, gate, scale=scale, balanced=self.balance > 0)

    def adapter(self, parts: Parts) -> LoRAAdapter:
        return TokenGatedAdapter(parts, Balance(weight=self.balance, kind="switch"))
