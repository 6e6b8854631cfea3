"""Dynamic weight average (arXiv 1803.10704): more weight for tasks whose losses fall slowly.

"End-to-End Multi-Task Learning with Attention", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.balancing import BalancedStage, BalancedStep, LossBalancer, TaskWeights
from harness.errors import UsageError
from harness.training.balance.scalars import relative


class AveragedWeights(TaskWeights):
    """The losses of each task in the current window of steps, and their means in the two windows before it."""

    def __init__(self, settings: DynamicWeightAverage, stage: BalancedStage) -> None:
        self.temperature, self.window = settings.temperature, settings.window or stage.epoch
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        # Older first, of the last two windows that had the task.
        self.means: dict[str, list[float]] = {}

    def weights(self, step: BalancedStep) -> Mapping[str, float]:
        return relative(step.tasks, [self._rate(task) / self.temperature for task in step.tasks])

    def _rate(self, task: str) -> float:
        older, newer = self.means[task] if len(self.means.get(task, ())) == 2 else (1.0, 1.0)
        return newer / older if older > 0 else 1.0

    def update(self, step: BalancedStep, losses: Mapping[str, float]) -> None:
        for task in step.tasks:
            self.sums[task] = self.sums.get(task, 0.0) + losses[task]
            self.counts[task] = self.counts.get(task, 0) + 1
        if (step.number + 1) % self.window == 0:
            for task, total in self.sums.items():
                self.means[task] = [*self.means.get(task, []), total / self.counts[task]][-2:]
            self.sums, self.counts = {}, {}

    def state(self) -> dict[str, Any]:
        return {"sums": self.sums, "counts": self.counts, "means": self.means}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.sums, self.counts, self.means = dict(state["sums"]), dict(state["counts"]), dict(state["means"])


@dataclass(frozen=True, kw_only=True)
class DynamicWeightAverage(LossBalancer):
    """w = T softmax(rate / temperature), rate = a task's mean loss in the last window over that in the window before.

    Before there are two windows with the task, its rate is 1. In the release a window is an epoch.

    temperature: of the softmax, as released.
    window: steps over which losses are averaged; None: one pass over the training examples.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "weights by how slowly each task's loss falls from one window of steps to the next"

    temperature: float = 2.0
    window: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UsageError(f"balance.temperature={self.temperature} must be above 0")
        if self.window is not None and self.window < 1:
            raise UsageError(
                f"balance.window={self.window}: use 1 step or more, or none for one pass over the examples"
            )

    def begin(self, stage: BalancedStage) -> TaskWeights:
        return AveragedWeights(self, stage)
