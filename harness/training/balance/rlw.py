"""Random loss weighting (arXiv 2111.10603): the control that every other balancer has to beat.

"Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning", 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from harness.balancing import BalancedStage, BalancedStep, LossBalancer, TaskWeights
from harness.seeding import stable_seed
from harness.training.balance.scalars import relative


class RandomWeights(TaskWeights):
    """Drawn from (seed, stage, step, task), so that nothing has to be remembered."""

    def __init__(self, stage: BalancedStage) -> None:
        self.stage = stage

    def weights(self, step: BalancedStep) -> Mapping[str, float]:
        return relative(step.tasks, [self._draw(step.number, task) for task in step.tasks])

    def _draw(self, number: int, task: str) -> float:
        seed = stable_seed("rlw", self.stage.seed, self.stage.name, number, task)
        return float(np.random.Generator(np.random.PCG64(seed)).standard_normal())

    def update(self, step: BalancedStep, losses: Mapping[str, float]) -> None:
        """Nothing is learned."""

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """There is nothing to load."""


@dataclass(frozen=True, kw_only=True)
class RandomLossWeighting(LossBalancer):
    """w = T softmax(z), with z drawn from a normal distribution for each task in every step.

    The paper's weights sum to 1; here their mean over the tasks of the step is 1.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "random weights in every step: the control for the other balancers"

    def begin(self, stage: BalancedStage) -> TaskWeights:
        return RandomWeights(stage)
