"""Layers of methods that use several LoRAs, each trained alone or read from a folder, for every task at inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from harness.method import TaskParts
from methods.layers.target import TargetModule
from methods.layers.task_linear import TaskLinear


class PostHocLinear(TaskLinear):
    """One LoRA for each task, or for each of ``expert_names``, and what a method makes of all of them (``together``).

    While ``use_mixture`` is off (see ``LoRAAdapter.without_mixture``), a sequence uses its own task's LoRA: so the
    LoRAs are trained.
    """

    def __init__(self, target: TargetModule, *, expert_names: Sequence[str], rank: int, scale: float) -> None:
        super().__init__(target, expert_names=expert_names, rank=rank, scale=scale)
        self.use_mixture = True

    def together(self, out: Tensor, x: Tensor) -> Tensor:
        """``out`` (M n, d_out) plus what all LoRAs together add for x (M, n, d_in), whatever the route."""
        raise NotImplementedError

    def task_parts(self) -> Mapping[str, TaskParts]:
        # The stages train single LoRAs, by name. After them a LoRA is used by every task.
        return {}

    def delta(self, out: Tensor, x: Tensor) -> Tensor:
        return self.together(out, x) if self.use_mixture else super().delta(out, x)
