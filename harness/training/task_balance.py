"""How a stage uses a balancer of tasks (``train.balance``): its weights, and the losses that it may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.balancing import BalancedStage, BalancedStep, Balancer, GradientBalancer, LossBalancer, TaskWeights
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.errors import DataError, UsageError
from harness.seeding import stable_seed
from harness.task import Example
from harness.training.optimiser import TrainedParameter
from harness.training.task_gradients import TaskGradients, shared_parameters

Losses = Mapping[str, float]


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
        jacobian = gradients.flat()[gradients.present]
        if len(jacobian) > 1 and bool(jacobian.isfinite().all()):
            seed = stable_seed("balance", self.stage.seed, self.stage.name, step)
            gradients.replace(self.balancer.aggregate(jacobian, seed))


@dataclass(frozen=True, kw_only=True)
class StageBalance:
    """The weights of the tasks of one stage. dev: by task, at least one dev example; empty if none is read."""

    weights: TaskWeights
    dev: Mapping[str, Sequence[Encoded]]

    def dev_of(self, step: int) -> list[Encoded]:
        """One dev example of each task, in turn."""
        return [examples[step % len(examples)] for examples in self.dev.values()]


@dataclass(frozen=True, kw_only=True)
class LossPasses:
    """Implements ``harness.balancing.Losses`` with two functions, each of which makes a forward pass."""

    of_step: Callable[[], Losses]
    on_dev: Callable[[], Losses]


@dataclass(frozen=True, kw_only=True)
class Balancing:
    """The balance of one step. weights: the factor on the loss of each of its tasks."""

    task_weights: TaskWeights
    step: BalancedStep
    weights: Losses

    @classmethod
    def begin(cls, task_weights: TaskWeights, step: BalancedStep) -> Balancing:
        """Compute the weights, before the step."""
        return cls(task_weights=task_weights, step=step, weights=task_weights.weights(step))

    def end(self, losses: Losses) -> None:
        """Learn from the step. losses: the mean token loss of each of its tasks, before it."""
        self.task_weights.update(self.step, losses)


def mean_losses(totals: Sequence[float], sequences: Sequence[Encoded], routes: Routes) -> dict[str, float]:
    """The mean token loss of each task of the sequences, by name. totals: of every task, summed over target tokens."""
    n_targets: dict[str, int] = {}
    for sequence in sequences:
        n_targets[sequence.task] = n_targets.get(sequence.task, 0) + len(sequence.target)
    return {task: totals[routes.index(task)] / n for task, n in sorted(n_targets.items())}
