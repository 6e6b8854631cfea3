"""AdaMoLE (arXiv 2405.00361, after the released code): the experts of each token that pass its own threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.method import Ranks, Trait
from methods.base import AdaptedLinear, LoRAAdapter, LoRAMethod, Parts, TargetModule, require_positive
from methods.layers.token_gates import (
    Balance,
    ThresholdGate,
    TokenGatedAdapter,
    TokenGatedLinear,
    require_weight,
    stored_rank,
)


@dataclass(frozen=True, kw_only=True)
class AdaMoLE(LoRAMethod):
    """h = W0 x + alpha / expert_rank sum_e g_e B_e A_e drop(x) with g_e = (p_e - tau)+ / sum_i (p_i - tau)+; B_e = 0.

    p = softmax(W_r x) and tau = max_threshold sigmoid(w x + b) are a token's, from x before dropout. Some expert passes
    the threshold if max_threshold is 1 / n_experts or less; otherwise a token may use none. The load balance is that of
    Switch Transformers with p - tau for p, as in the released code, for each sequence and layer.

    expert_rank: of each expert. max_threshold: None is 1 / n_experts. balance: the weight of the load balance.
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset()
    summary: ClassVar[str] = "the experts of each token that pass its own threshold"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_balance": {"balance": 0.0},
        "no_threshold": {"max_threshold": 0.0},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "method.n_experts": 8,
            "method.expert_rank": 32,
            "method.max_threshold": 0.125,
            "method.balance": 1e-3,
            "method.targets": "q_proj,k_proj,v_proj,o_proj",
            "train.lr": 1e-4,
            "train.batch_size": 16,
            "train.epochs": 2.0,
            "train.max_length": 256,
        }
    }
    rank_field: ClassVar[str] = "expert_rank"

    n_experts: int = 8
    expert_rank: int = 2
    max_threshold: float | None = None
    balance: float = 1e-3

    def __post_init__(self) -> None:
        require_positive(expert_rank=self.expert_rank, n_experts=self.n_experts)
        require_weight("method.balance", self.balance)
        require_weight("method.max_threshold", self.max_threshold or 0.0)

    def ranks(self, n_tasks: int) -> Ranks:
        """Active counts every expert, since a token may use all of them."""
        active = self.n_experts * self.expert_rank
        return Ranks(stored=stored_rank(rows=active + self.n_experts + 1, columns=active), active=active)

    def layer(self, target: TargetModule) -> AdaptedLinear:
        most = 1 / self.n_experts if self.max_threshold is None else self.max_threshold
        gate = target.shared(f"{target.name}.gate", lambda: ThresholdGate(target, self.n_experts, most))
        factors = target.experts(range(self.n_experts), self.expert_rank)
        scale = self.alpha / self.expert_rank
        return TokenGatedLinear(target, factors, gate, scale=scale, balanced=self.balance > 0)

    def adapter(self, parts: Parts) -> LoRAAdapter:
        return TokenGatedAdapter(parts, Balance(weight=self.balance, kind="switch"))
