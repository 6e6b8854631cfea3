"""One plain LoRA for all tasks (arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.method import Ranks, Trait
from methods.base import AdaptedLinear, LoRAMethod, TargetModule, TaskLinear


@dataclass(frozen=True, kw_only=True)
class LoRAAll(LoRAMethod):
    """h = W0 x + alpha / rank B A x, with A initially kaiming-uniform (a = sqrt(5)) and B zero."""

    version: ClassVar[int] = 2
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.FOLDS})
    summary: ClassVar[str] = "one LoRA for all tasks"

    rank: int = 16

    def layer(self, target: TargetModule) -> AdaptedLinear:
        return TaskLinear(target, expert_names=None, rank=self.rank, scale=self.alpha / self.rank)

    def ranks(self, n_tasks: int) -> Ranks:
        return Ranks(stored=self.rank, active=self.rank)
