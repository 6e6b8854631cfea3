"""HydraLoRA (arXiv 2404.19245, after the released code): one A, several heads B, and a gate on each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from harness.method import Ranks, Trait
from methods.base import AdaptedLinear, ExpertFactors, LoRAMethod, TargetModule, require_positive
from methods.layers.token_gates import TokenGate, TokenGatedLinear, stored_rank


@dataclass(frozen=True, kw_only=True)
class HydraLoRA(LoRAMethod):
    """h = W0 x + alpha / rank sum_k w_k(x) B_k A drop(x) with w(x) = softmax(W_r x); initially B_k = 0.

    A gate for each layer reads x before dropout. Dropout has one mask for each layer; in the released code each head
    has its own. An ablation with equal weights would be ``lora_all``: all heads start at 0, and with equal weights they
    stay equal to each other.

    rank: of A and of each head. n_experts: the number of heads.
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset()
    summary: ClassVar[str] = "one A, several heads B, and a gate on each token"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "method.rank": 4,
            "method.n_experts": 4,
            "method.alpha": 32.0,
            "method.dropout": 0.05,
            "method.targets": "gate_proj,up_proj,down_proj",
            "train.lr": 2e-4,
            "train.warmup": 0.03,
            "train.batch_size": 8,
            "train.epochs": 1.0,
            "train.max_length": 1024,
        }
    }

    rank: int = 16
    n_experts: int = 4

    def __post_init__(self) -> None:
        require_positive(rank=self.rank, n_experts=self.n_experts)

    def ranks(self, n_tasks: int) -> Ranks:
        """Active is the rank of A, since each token's update has this rank."""
        stored = stored_rank(rows=self.rank + self.n_experts, columns=self.n_experts * self.rank)
        return Ranks(stored=stored, active=self.rank)

    def layer(self, target: TargetModule) -> AdaptedLinear:
        head = target.experts([0], self.rank)
        factors = ExpertFactors(a=head.a, b=nn.Parameter(head.b.detach().repeat(1, self.n_experts)))
        gate = target.shared(f"{target.name}.gate", lambda: TokenGate(target, self.n_experts))
        return TokenGatedLinear(target, factors, gate, scale=self.alpha / self.rank, balanced=False)
