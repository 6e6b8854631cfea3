"""One plain LoRA for each task, trained on its task alone: the reference for negative transfer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from harness.method import Adapter, Ranks, Trainer, Trait
from methods.base import AdaptedLinear, LoRAAdapter, LoRAMethod, Site, TaskLinear, train_alone


@dataclass(frozen=True, kw_only=True)
class LoRASingle(LoRAMethod):
    """As many trainings of ``lora_all`` with one task as there are tasks, one after the other, each from its start."""

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.ROUTED, Trait.FOLDS})
    summary: ClassVar[str] = "one LoRA for each task, trained alone"

    rank: int = 16

    def layer(self, site: Site) -> AdaptedLinear:
        return TaskLinear(site, experts=site.tasks, rank=self.rank, scale=self.alpha / self.rank)

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        train_alone(cast("LoRAAdapter", adapter), trainer, tasks)

    def stage_key(self, stage: str, tasks: Sequence[str]) -> str | None:
        return self.alone_key(stage, self.rank) if stage in tasks else None

    def kept_stages(self, tasks: Sequence[str]) -> Sequence[str]:
        return tasks

    def ranks(self, n_tasks: int) -> Ranks:
        return Ranks(stored=n_tasks * self.rank, active=self.rank)
