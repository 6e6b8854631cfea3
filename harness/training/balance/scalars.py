"""One number for each task, learned by Adam; a task that is absent from a step keeps its number and its moments."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

_BETA1: Final = 0.9
_BETA2: Final = 0.999
_EPS: Final = 1e-8


@dataclass(kw_only=True)
class _Scalar:
    """A number with the moments of its gradient and the number of its updates."""

    value: float
    first: float = 0.0
    second: float = 0.0
    updates: int = 0


@dataclass(kw_only=True)
class TaskScalars:
    """A number for each task, updated by Adam with PyTorch's defaults (arXiv 1412.6980), in float64.

    weight_decay: added to the gradient, as torch.optim.Adam does.
    """

    tasks: Collection[str]
    start: float
    weight_decay: float = 0.0
    _scalars: dict[str, _Scalar] = field(init=False)

    def __post_init__(self) -> None:
        self._scalars = {task: _Scalar(value=self.start) for task in self.tasks}

    def __getitem__(self, task: str) -> float:
        return self._scalars[task].value

    def descend(self, gradient: Mapping[str, float], lr: float) -> None:
        """One update of the tasks of the gradient."""
        for task, slope in gradient.items():
            scalar = self._scalars[task]
            slope += self.weight_decay * scalar.value
            scalar.updates += 1
            scalar.first = _BETA1 * scalar.first + (1 - _BETA1) * slope
            scalar.second = _BETA2 * scalar.second + (1 - _BETA2) * slope * slope
            first = scalar.first / (1 - _BETA1**scalar.updates)
            second = scalar.second / (1 - _BETA2**scalar.updates)
            scalar.value -= lr * first / (math.sqrt(second) + _EPS)

    def state(self) -> dict[str, Any]:
        """By task: value, both moments, number of updates."""
        return {task: [s.value, s.first, s.second, s.updates] for task, s in self._scalars.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state``."""
        for task, (value, first, second, updates) in state.items():
            self._scalars[task] = _Scalar(value=value, first=first, second=second, updates=updates)


def softmax(values: Sequence[float]) -> list[float]:
    """Weights that are proportional to exp(value) and sum to 1."""
    largest = max(values)
    powers = [math.exp(value - largest) for value in values]
    return [power / sum(powers) for power in powers]


def relative(tasks: Sequence[str], logits: Sequence[float]) -> dict[str, float]:
    """The softmax over tasks, times their number, so that the mean weight is 1."""
    return {task: len(tasks) * share for task, share in zip(tasks, softmax(logits), strict=True)}
