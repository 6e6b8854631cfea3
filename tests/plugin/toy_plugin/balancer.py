"""A balancer of another package: the geometric mean of the losses, whose weights are G / L_t."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.balancing import BalancedStage, BalancedStep, LossBalancer, TaskWeights


class GeometricWeights(TaskWeights):
    """Nothing is learned."""

    def __init__(self, power: float) -> None:
        self.power = power

    def weights(self, step: BalancedStep) -> Mapping[str, float]:
        losses = step.losses.of_step()
        mean = math.exp(sum(math.log(losses[task]) for task in step.tasks) / len(step.tasks))
        return {task: (mean / losses[task]) ** self.power for task in step.tasks}

    def update(self, step: BalancedStep, losses: Mapping[str, float]) -> None:
        """Nothing is learned."""

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Checkpoints keep nothing of it."""


@dataclass(frozen=True, kw_only=True)
class Geometric(LossBalancer):
    """w = (G / L) ** power, where G is the geometric mean of the losses of the step.

    power: 1 for the gradient of G.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "the geometric mean of the losses"

    power: float = 1.0

    def begin(self, stage: BalancedStage) -> TaskWeights:
        return GeometricWeights(self.power)
