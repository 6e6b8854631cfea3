"""FAMO (arXiv 2306.03792): weights that make the logarithms of all losses fall at the same rate.

"FAMO: Fast Adaptive Multitask Optimization", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from harness.balancing import BalancedStage, BalancedStep, LossBalancer, TaskWeights
from harness.errors import UsageError
from harness.training.balance.scalars import TaskScalars, softmax

_SMALLEST: Final = 1e-8  # added to losses, as released


class FamoWeights(TaskWeights):
    """z = softmax(xi) over the tasks of the step; xi descends the gradient of how much more some losses fall."""

    def __init__(self, settings: FAMO, stage: BalancedStage) -> None:
        self.lr, self.same_batch = settings.lr, settings.same_batch
        self.xi = TaskScalars(tasks=stage.tasks, start=0.0, weight_decay=settings.weight_decay)
        self.before: dict[str, float] = {}  # log D_t of each task in the last step that had it

    def weights(self, step: BalancedStep) -> Mapping[str, float]:
        losses = step.losses.of_step()
        if not self.same_batch:
            self._learn({task: losses[task] for task in step.tasks if task in self.before})
        shares = self._shares(step.tasks)
        ratios = {task: share / (losses[task] + _SMALLEST) for task, share in shares.items()}
        total = sum(ratios.values())
        return {task: len(ratios) * ratio / total for task, ratio in ratios.items()}

    def update(self, step: BalancedStep, losses: Mapping[str, float]) -> None:
        self.before |= {task: math.log(losses[task] + _SMALLEST) for task in step.tasks}
        if self.same_batch:
            self._learn(step.losses.of_step())
            self.before = {}

    def _shares(self, tasks: tuple[str, ...]) -> dict[str, float]:
        return dict(zip(tasks, softmax([self.xi[task] for task in tasks]), strict=True))

    def _learn(self, losses: Mapping[str, float]) -> None:
        """One update of xi by the fall of log D_t of these tasks: delta times the Jacobian of the softmax."""
        if not losses:
            return
        shares = self._shares(tuple(losses))
        falls = {task: self.before[task] - math.log(loss + _SMALLEST) for task, loss in losses.items()}
        mean = sum(shares[task] * fall for task, fall in falls.items())
        self.xi.descend({task: shares[task] * (fall - mean) for task, fall in falls.items()}, self.lr)

    def state(self) -> dict[str, Any]:
        return {"xi": self.xi.state(), "before": self.before}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.xi.load_state(state["xi"])
        self.before = dict(state["before"])


@dataclass(frozen=True, kw_only=True)
class FAMO(LossBalancer):
    """L = sum_t z_t log D_t / c, z = softmax(xi), D_t = L_t + 1e-8, c = sum_t z_t / D_t; so w_t = T z_t / (c D_t).

    After a step xi descends delta^T d softmax(xi) / d xi, where delta_t is the fall of log D_t in this step. As
    released, the smallest possible loss of every task is 0, and Adam updates xi. Only the tasks of a step take part.

    The weights of a step depend on its own losses, which are known only when all its micro-batches have been read: they
    come from a forward pass before the step. Another one after the step measures delta on the same examples, as
    released. Instead the losses of the next step may be used, which are known without it, but delta then has the
    difference between two batches in it: this is noise, which is large where a step has few examples of a task.

    same_batch: whether delta is measured on the same examples, with two forward passes more for each step, or by the
        losses of the next step, with one.
    lr: the learning rate of xi, as released.
    weight_decay: the weight decay of xi, as in LibMTL.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "weights that make the logarithms of all losses fall at the same rate"

    same_batch: bool = True
    lr: float = 0.025
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise UsageError(f"balance.lr={self.lr} must be above 0")

    def begin(self, stage: BalancedStage) -> TaskWeights:
        return FamoWeights(self, stage)
