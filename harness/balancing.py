"""The contract for balancers (``train.balance``): what decides how much each task of a step counts.

A balancer weighs losses before the backward pass (``LossBalancer``), or combines the gradients of the tasks after it
(``GradientBalancer``). It is a frozen dataclass whose fields are its settings (``balance.<field>`` keys).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Balancer(ABC):
    """A way to balance tasks. Subclass ``LossBalancer`` or ``GradientBalancer``."""

    version: ClassVar[int]  # Raise it whenever results change: runs of another version are not reused.
    summary: ClassVar[str] = ""  # One line for `harness list`.
    reads_dev: ClassVar[bool] = False  # Whether it asks for ``Losses.on_dev``, so that the data need a dev split.
    needs: ClassVar[Mapping[str, str]] = {}  # By package that may be missing, the command that installs it.


class Losses(Protocol):
    """The mean losses of tasks, weighted as ``train.loss`` says, with the parameters as they are at the call.

    Each call is a forward pass without gradients, and every process makes it. The result is the same in all of them.
    """

    def of_step(self) -> Mapping[str, float]:
        """Of the step's own examples, with the step's dropout: of every task of the step."""

    def on_dev(self) -> Mapping[str, float]:
        """Of one dev example of each task, the next one in every step; without dropout. For ``reads_dev`` only."""


@dataclass(frozen=True, kw_only=True)
class BalancedStage:
    """A stage of training. tasks: those with training examples. epoch: the number of steps of one pass over them."""

    name: str
    tasks: tuple[str, ...]
    epoch: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class BalancedStep:
    """One step. number: counts from 0 in its stage. tasks: those that the step has examples of.

    lr: the learning rate of the step.
    """

    number: int
    tasks: tuple[str, ...]
    lr: float
    losses: Losses


class TaskWeights(Protocol):
    """The weights of the tasks of one stage. Every process computes the same ones from the same losses."""

    def weights(self, step: BalancedStep) -> Mapping[str, float]:
        """Called before the step: the factor on the loss of each of its tasks, above 0; 1 changes nothing.

        It multiplies what ``train.loss`` gives to the task's tokens. With ``train.loss=task`` the step minimises the
        mean over its tasks of weight times loss.
        """

    def update(self, step: BalancedStep, losses: Mapping[str, float]) -> None:
        """Called after the step. losses: the mean loss of each of its tasks, before the parameters changed."""

    def state(self) -> dict[str, Any]:
        """What later weights depend on, as JSON values, for checkpoints."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state``."""


@dataclass(frozen=True, kw_only=True)
class LossBalancer(Balancer):
    """A balancer that gives weights to tasks."""

    @abstractmethod
    def begin(self, stage: BalancedStage) -> TaskWeights:
        """The weights at the first step of a stage."""


@dataclass(frozen=True, kw_only=True)
class GradientBalancer(Balancer):
    """A balancer that combines the gradients of the tasks of a step."""

    @abstractmethod
    def aggregate(self, jacobian: Tensor, seed: int) -> Tensor:
        """One direction of descent.

        Args:
            jacobian: (T, n), finite: the gradient of the share of each of the step's tasks in its loss, at least two,
                so that the sum over tasks is the gradient of training without balance. The n numbers are the
                parameters that all tasks share. It may be overwritten.
            seed: for random choices; it depends on the run's seed, the stage and the step.

        Returns: (n,), in the place of the sum over tasks; the same in every process for equal arguments.
        """
