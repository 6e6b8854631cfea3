"""Uncertainty weighting (arXiv 1705.07115): learned weights, low for tasks with large losses.

"Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics", 2018.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.balancing import BalancedStage, BalancedStep, LossBalancer, TaskWeights
from harness.training.balance.scalars import TaskScalars


class UncertaintyWeights(TaskWeights):
    """exp(-s_t), where s_t descends the gradient of exp(-s_t) L_t + s_t."""

    def __init__(self, settings: UncertaintyWeighting, stage: BalancedStage) -> None:
        self.lr = settings.lr
        self.s = TaskScalars(tasks=stage.tasks, start=settings.start)

    def weights(self, step: BalancedStep) -> Mapping[str, float]:
        return {task: math.exp(-self.s[task]) for task in step.tasks}

    def update(self, step: BalancedStep, losses: Mapping[str, float]) -> None:
        gradient = {task: 1 - math.exp(-self.s[task]) * losses[task] for task in step.tasks}
        self.s.descend(gradient, step.lr if self.lr is None else self.lr)

    def state(self) -> dict[str, Any]:
        return {"s": self.s.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.s.load_state(state["s"])


@dataclass(frozen=True, kw_only=True)
class UncertaintyWeighting(LossBalancer):
    """L = sum_t exp(-s_t) L_t + s_t, with s_t learned together with the parameters; at its best exp(-s_t) = 1 / L_t.

    LibMTL minimises half of this, L_t / (2 exp(s_t)) + s_t / 2. Here a weight of 1 is that of training without balance.
    The term s_t is not part of the loss that a run reports. Adam updates s_t in float64, without weight decay.

    start: s_t at the first step, as in LibMTL.
    lr: the learning rate of s_t; None: that of the parameters, with its warm-up and its decay, as in LibMTL.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "weights exp(-s), with s learned: tasks with large losses count less"

    start: float = -0.5
    lr: float | None = None

    def begin(self, stage: BalancedStage) -> TaskWeights:
        return UncertaintyWeights(self, stage)
