"""LoRAMoE (arXiv 2312.09979, after the released code): experts, all active, and a gate on each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.method import Ranks, Trait
from methods.base import AdaptedLinear, LoRAAdapter, LoRAMethod, Parts, TargetModule, require_positive
from methods.layers.token_gates import (
    Balance,
    TokenGate,
    TokenGatedAdapter,
    TokenGatedLinear,
    require_weight,
    stored_rank,
)


@dataclass(frozen=True, kw_only=True)
class LoRAMoE(LoRAMethod):
    """h = W0 x + alpha / expert_rank sum_k w_k(x) B_k A_k drop(x) with w(x) = softmax(W_r x); initially B_k = 0.

    A gate for each layer reads x before dropout. The load balance is the squared coefficient of variation of the
    experts' weights, for each sequence and layer. The paper also scales weights by the type of a sequence (delta), of
    which its release has two and switches the factor off; a suite has no such types.

    expert_rank: of each expert. balance: the weight of the load balance, 0 as in the release's run.
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset()
    summary: ClassVar[str] = "experts behind a gate on each token"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {"balance": {"balance": 0.01}}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "method.expert_rank": 4,
            "method.n_experts": 8,
            "method.alpha": 32.0,
            "method.dropout": 0.05,
            "method.targets": "gate_proj,up_proj,down_proj",
            "method.balance": 0.0,
            "train.lr": 2e-4,
            "train.warmup": 0.03,
        }
    }
    rank_field: ClassVar[str] = "expert_rank"

    expert_rank: int = 2
    n_experts: int = 8
    balance: float = 0.0

    def __post_init__(self) -> None:
        require_positive(expert_rank=self.expert_rank, n_experts=self.n_experts)
        require_weight("method.balance", self.balance)

    def ranks(self, n_tasks: int) -> Ranks:
        active = self.n_experts * self.expert_rank
        return Ranks(stored=stored_rank(rows=active + self.n_experts, columns=active), active=active)

    def layer(self, target: TargetModule) -> AdaptedLinear:
        gate = target.shared(f"{target.name}.gate", lambda: TokenGate(target, self.n_experts))
        factors = target.experts(range(self.n_experts), self.expert_rank)
        scale = self.alpha / self.expert_rank
        return TokenGatedLinear(target, factors, gate, scale=scale, balanced=self.balance > 0)

    def adapter(self, parts: Parts) -> LoRAAdapter:
        return TokenGatedAdapter(parts, Balance(weight=self.balance, kind="variation"))
