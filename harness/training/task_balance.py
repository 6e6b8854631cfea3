"""How a stage uses a balancer of tasks (``train.balance``): its weights, and the losses that it may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from harness.balancing import BalancedStage, BalancedStep, Balancer, GradientBalancer, LossBalancer, TaskWeights
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.errors import DataError, TrainingError, UsageError
from harness.models.loading import LoadedModel
from harness.seeding import stable_seed
from harness.task import Example
from harness.training.optimiser import TrainedParameter
from harness.training.task_gradients import TaskGradients, shared_parameters


@dataclass(frozen=True, kw_only=True)
class TaskBalancing:
    """The balancer of a run. dev: the dev examples of each task, for balancers that read them."""

    balancer: Balancer
    dev: Mapping[str, Sequence[Example]] = field(default_factory=dict)

    def weights(
        self, stage: BalancedStage, encode: Callable[[Sequence[Example]], list[Encoded]]
    ) -> StageBalance | None:
        """The weights of the tasks of one stage; None for one task, and for a balancer that combines gradients.

        Raises: DataError for a task without the dev examples that the balancer reads.
        """
        if len(stage.tasks) < 2 or not isinstance(self.balancer, LossBalancer):
            return None
        without = [task for task in stage.tasks if not self.dev.get(task)] if self.balancer.reads_dev else []
        if without:
            raise DataError(
                f"train.balance reads dev, which has no examples of {', '.join(without)}: leave train.balance out, or "
                "choose other tasks with --tasks"
            )
        dev = {task: encode(self.dev[task]) for task in stage.tasks} if self.balancer.reads_dev else {}
        return StageBalance(weights=self.balancer.begin(stage), dev=dev)

    def combined(self, stage: BalancedStage, trained: Mapping[str, TrainedParameter]) -> CombinedGradients | None:
        """What combines the gradients of one stage; None for one task, and for a balancer that weighs losses.

        Args: trained: the parameters of the stage.

        Raises: UsageError if tasks share none of them.
        """
        if len(stage.tasks) < 2 or not isinstance(self.balancer, GradientBalancer):
            return None
        if not shared_parameters(trained):
            raise UsageError(
                f"train.balance combines gradients of parameters that tasks share, and stage {stage.name!r} of this "
                "method trains none: leave train.balance out, or use a balancer that weighs losses"
            )
        return CombinedGradients(balancer=self.balancer, stage=stage)


@dataclass(frozen=True, kw_only=True)
class CombinedGradients:
    """Combines the gradients of the tasks of each step of one stage."""

    balancer: GradientBalancer
    stage: BalancedStage

    def replace(self, gradients: TaskGradients, step: int) -> None:
        """Put the combination in the place of the sum over tasks. step: counts from 0.

        A step with one task has nothing to combine, and one whose gradients are not finite will not be applied.
        """
        jacobian, present = gradients.flat(), gradients.present
        if len(present) < len(jacobian):
            jacobian = jacobian[present]
        if len(jacobian) > 1 and bool(jacobian.isfinite().all()):
            seed = stable_seed("balance", self.stage.seed, self.stage.name, step)
            gradients.replace(self.balancer.aggregate(jacobian, seed))


@dataclass(frozen=True, kw_only=True)
class StageBalance:
    """The weights of the tasks of one stage. dev: by task, at least one dev example; empty if none is read."""

    weights: TaskWeights
    dev: Mapping[str, Sequence[Encoded]]


class StepLosses(Protocol):
    """The part of ``StepRunner`` that gives the losses of tasks without gradients; see there."""

    loaded: LoadedModel

    def losses(self, number: int, sequences: Sequence[Encoded], routes: Routes) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class LossPasses:
    """Implements ``harness.balancing.Losses`` for one step, with a forward pass at each call.

    dev: of ``StageBalance``.
    """

    runner: StepLosses
    number: int
    sequences: Sequence[Encoded]
    dev: Mapping[str, Sequence[Encoded]]
    routes: Routes

    def of_step(self) -> Mapping[str, float]:
        return self._losses(self.sequences)

    def on_dev(self) -> Mapping[str, float]:
        model = self.runner.loaded.model
        was_training = model.training
        model.eval()
        try:
            return self._losses([examples[self.number % len(examples)] for examples in self.dev.values()])
        finally:
            model.train(was_training)

    def _losses(self, sequences: Sequence[Encoded]) -> Mapping[str, float]:
        present = {s.task for s in sequences}
        means = self.runner.losses(self.number, sequences, self.routes).tolist()
        return {task: mean for task, mean in zip(self.routes.tasks, means, strict=True) if task in present}


@dataclass(frozen=True, kw_only=True)
class Balancing:
    """The balance of one step. weights: the factor on the loss of each of its tasks."""

    task_weights: TaskWeights
    step: BalancedStep
    weights: Mapping[str, float]

    @classmethod
    def begin(cls, task_weights: TaskWeights, step: BalancedStep) -> Balancing:
        """Compute the weights, before the step. Raises: TrainingError if one is 0 or below."""
        weights = task_weights.weights(step)
        for task, weight in weights.items():
            if weight <= 0:
                raise TrainingError(f"train.balance gave task {task} the weight {weight}: weights must be above 0")
        return cls(task_weights=task_weights, step=step, weights=weights)

    def end(self, losses: Mapping[str, float]) -> None:
        """Learn from the step. losses: the mean loss of each of its tasks, before it."""
        self.task_weights.update(self.step, losses)


def by_name(totals: Sequence[float], counts: Sequence[float], routes: Routes) -> dict[str, float]:
    """The mean of each task that has one, from the sums and the counts, or weights, of all tasks."""
    return {task: total / n for task, total, n in zip(routes.tasks, totals, counts, strict=True) if n}
