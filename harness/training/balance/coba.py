"""CoBa (arXiv 2410.06741): less weight for tasks that converge fast or diverge, as losses on dev say.

"CoBa: Convergence Balancer for Multitask Finetuning of Large Language Models", 2024; as in MFTCoder's ``CoBaStatus``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from harness.balancing import BalancedStage, BalancedStep, LossBalancer, TaskWeights
from harness.errors import UsageError
from harness.training.balance.scalars import softmax

Floats = NDArray[np.float64]


def slope(values: Sequence[float]) -> float:
    """The slope of the line through equally spaced values with the least squared error; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    x = np.arange(len(values)) - (len(values) - 1) / 2
    return float(x @ np.asarray(values) / (x @ x))


def convergence_weights(slopes: Floats, largest: Floats, tau: float) -> Floats:
    """The weights of the tasks, with sum 1.

    Args:
        slopes: (n, T), of each task's loss on dev, at the last n steps. largest: (N,), of the largest loss of any task,
            at all steps since the warm-up.
    """
    n_tasks = slopes.shape[1]
    now = slopes[-1]
    rcs = softmax((n_tasks * now / _positive(np.abs(now).sum())).tolist())
    acs = softmax((-len(slopes) * now / _positive(np.abs(slopes).sum(0))).tolist())
    relative = -len(largest) * largest / _positive(np.abs(largest).sum())
    divergence = len(largest) * softmax((tau * relative).tolist())[-1]
    logits = divergence * np.asarray(rcs) + (1 - divergence) * np.asarray(acs)
    weights = np.asarray(softmax((n_tasks * logits).tolist()))
    smallest = 1 / (10 * n_tasks)
    return weights * (1 - smallest * n_tasks) + smallest if bool((weights < smallest).any()) else weights


def _positive(values: Any) -> Any:
    """The same values, 1 in place of 0: where every slope is 0, the scores are equal instead of undefined."""
    return np.where(values == 0, 1.0, values)


class ConvergenceWeights(TaskWeights):
    """The losses on dev divided by the first ones, their slopes, and the slope of the largest of them."""

    def __init__(self, settings: CoBa, stage: BalancedStage) -> None:
        self.settings, self.tasks = settings, stage.tasks
        # Lists by step, the newest last; the inner lists are by task.
        self.losses: list[list[float]] = []
        self.first: list[float] = []
        self.slopes: list[list[float]] = []
        self.largest: list[float] = []

    def weights(self, step: BalancedStep) -> Mapping[str, float]:
        dev = step.losses.on_dev()
        now = [dev[task] for task in self.tasks]
        self.first = self.first or now
        relative = [loss / first if first > 0 else 1.0 for loss, first in zip(now, self.first, strict=True)]
        self.losses = [*self.losses, relative][-self.settings.history :]
        if step.number < self.settings.warmup:
            return dict.fromkeys(step.tasks, 1.0)
        columns = list(zip(*self.losses, strict=True))
        self.slopes = [*self.slopes, [slope(column) for column in columns]][-self.settings.history :]
        self.largest.append(slope([max(losses) for losses in self.losses]))
        found = convergence_weights(np.asarray(self.slopes), np.asarray(self.largest), self.settings.tau)
        by_task = dict(zip(self.tasks, found.tolist(), strict=True))
        total = sum(by_task[task] for task in step.tasks)
        return {task: len(step.tasks) * by_task[task] / total for task in step.tasks}

    def update(self, step: BalancedStep, losses: Mapping[str, float]) -> None:
        """Only losses on dev count, and they have been computed before the step."""

    def state(self) -> dict[str, Any]:
        return {"losses": self.losses, "first": self.first, "slopes": self.slopes, "largest": self.largest}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.losses, self.first = list(state["losses"]), list(state["first"])
        self.slopes, self.largest = list(state["slopes"]), list(state["largest"])


@dataclass(frozen=True, kw_only=True)
class CoBa(LossBalancer):
    """w = softmax(T (DF RCS + (1 - DF) ACS)), from the slopes a_t of the losses on dev over the last ``history`` steps.

    RCS = softmax_t(T a_t / sum_j |a_j|), ACS = softmax_t(-n a_t / sum_s |a_t(s)|), DF = N softmax_s(-tau N a_max(s) /
    sum_s |a_max(s)|) at the current step, where a_max is the slope of the largest loss of any task, n counts the last
    ``history`` steps and N all steps since the warm-up. Where a weight is below m = 1 / (10 T), every w becomes
    w (1 - m T) + m. The weights of the tasks of a step are divided by their mean, as MFTCoder divides by their sum.

    As released, losses are relative to those at the first step, and there is a forward pass on dev before every step.
    It reads one dev example of each task, in turn out of ``train.eval_rows``.

    warmup: steps without balance at the beginning of a stage, as released.
    history: steps over which slopes are fitted, as released.
    tau: the temperature of DF, as released.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "weights by how fast each task converges or diverges on dev"
    reads_dev: ClassVar[bool] = True

    warmup: int = 100
    history: int = 200
    tau: float = 5.0

    def __post_init__(self) -> None:
        if self.warmup < 1:
            raise UsageError(f"balance.warmup={self.warmup}: slopes need losses of at least 1 step before them")
        if self.history < 2:
            raise UsageError(f"balance.history={self.history}: a slope needs the losses of at least 2 steps")

    def begin(self, stage: BalancedStage) -> TaskWeights:
        return ConvergenceWeights(self, stage)
