"""M-LoRA (arXiv 2508.05078, section 3.1): one A and summed heads B without a router, each head with its own dropout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.errors import UsageError
from harness.method import Ranks, Trait
from methods.base import AdaptedLinear, LoRAMethod, TargetModule
from methods.layers.heads import HeadsLinear


@dataclass(frozen=True, kw_only=True)
class MLoRA(LoRAMethod):
    """h = W0 x + alpha / rank sum_i B_i drop_i(A x), with B_i initially zero.

    For prediction this is one LoRA of ``rank``: the heads differ only through their dropout in training.

    rank: of A, of each head, and of the fold. n_heads: the number of factors B_i.
    head_dropout: the probability of each head's own mask on A x.
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.FOLDS})
    summary: ClassVar[str] = "one A and summed heads B with their own dropout, one LoRA for all tasks"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_head_dropout": {"head_dropout": 0.0},
        "one_head": {"n_heads": 1},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # R-LoRA, from which the paper takes this layer, scales by alpha / sqrt(rank) with alpha 32 and rank 4.
        "paper": {"method.rank": 4, "method.alpha": 64.0, "method.n_heads": 5, "method.head_dropout": 0.1}
    }

    rank: int = 16
    n_heads: int = 5
    head_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.n_heads < 1:
            raise UsageError(f"method.n_heads={self.n_heads}: give 1 or more")
        if not 0 <= self.head_dropout < 1:
            raise UsageError(f"method.head_dropout={self.head_dropout}: give a probability from 0 to below 1")

    def ranks(self, n_tasks: int) -> Ranks:
        """The stored rank is that of the stacked heads, the larger factor: A has only ``rank`` rows."""
        return Ranks(stored=self.n_heads * self.rank, active=self.rank)

    def layer(self, target: TargetModule) -> AdaptedLinear:
        return HeadsLinear(
            target,
            n_heads=self.n_heads,
            rank=self.rank,
            scale=self.alpha / self.rank,
            head_dropout=self.head_dropout,
        )
