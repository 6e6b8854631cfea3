"""One plain LoRA (arXiv 2106.09685) for each task, trained on its own task: the reference for negative transfer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from harness.method import Adapter, Ranks, Trainer, Trait
from methods.base import AdaptedLinear, LoRAAdapter, LoRAMethod, TargetModule, TaskLinear, train_alone


@dataclass(frozen=True, kw_only=True)
class LoRASingle(LoRAMethod):
    """One training of ``lora_all`` for each task, on only the examples of this task, one after the other."""

    version: ClassVar[int] = 2
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.ROUTED, Trait.FOLDS})
    summary: ClassVar[str] = "one LoRA for each task, trained alone"

    mixes_tasks: ClassVar[bool] = False

    rank: int = 16

    def layer(self, target: TargetModule) -> AdaptedLinear:
        return TaskLinear(target, expert_names=target.tasks, rank=self.rank, scale=self.alpha / self.rank)

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        train_alone(cast("LoRAAdapter", adapter), trainer, tasks)

    def stage_key(self, stage: str, tasks: Sequence[str]) -> str | None:
        return self.alone_key(stage, self.rank) if stage in tasks else None

    def kept_stages(self, tasks: Sequence[str]) -> Sequence[str]:
        return tasks

    def ranks(self, n_tasks: int) -> Ranks:
        return Ranks(stored=n_tasks * self.rank, active=self.rank)
