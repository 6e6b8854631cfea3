"""One plain LoRA for all tasks (arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.method import Ranks, Trait
from methods.base import AdaptedLinear, LoRAMethod, Site, TaskLinear


@dataclass(frozen=True, kw_only=True)
class LoRAAll(LoRAMethod):
    """h = W0 x + alpha / rank B A x; A kaiming-uniform with a = sqrt(5), B zero."""

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.FOLDS})
    summary: ClassVar[str] = "one LoRA for all tasks"

    rank: int = 16

    def layer(self, site: Site) -> AdaptedLinear:
        return TaskLinear(site, experts=None, rank=self.rank, scale=self.alpha / self.rank)

    def ranks(self, n_tasks: int) -> Ranks:
        return Ranks(stored=self.rank, active=self.rank)
