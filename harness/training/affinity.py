"""Task affinity, gathered while a run trains: how much a step on one task lowers the loss of another.

Fifty et al., Efficiently Identifying Task Groupings for Multi-Task Learning, arXiv 2109.04617 (TAG). With the mean loss
L_t of task t on the batch of a step, its gradient g_t for the shared parameters theta, and the preconditioner P of
AdamW, the affinity of a source i for a recipient j is

    Z_ij = (1 - L_j(theta - h_i P g_i) / L_j(theta)) / h_i      with lookahead: one more forward pass for each source,
    Z_ij = <g_j, P g_i> / L_j                                   to first order in h_i: no further pass.

Above 0, the step on i helps j. h_i = lr (1 - beta1) w_i makes the step the part of AdamW's own step that comes from the
examples of i, where w_i is the weight of i in the loss. P = f / (sqrt(v) + eps) with the bias-corrected second moments
v of the steps before this one, and f the parameter's factor on the learning rate. The paper's step has the optimiser's
momentum too; that part is the same for every source and is left out. Parameters of single tasks stay as they are.

Shapes: T tasks; matrices (T, T) have a line for each source and a column for each recipient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.store.affinity import MeasuredAffinity
from harness.training.step import StepRunner
from harness.training.task_gradients import TaskGradients
from harness.training.task_products import SharedParameter

GRADIENTS: Final = "gradients"
LOOKAHEAD: Final = "lookahead"

# B of a LoRA starts at zero, so that the gradient of A is zero at first: this share of a stage's steps is not measured.
WARM_UP: Final = 0.05


@dataclass(kw_only=True)
class AffinitySums:
    """The affinities of measured steps, summed; JSON values in checkpoints.

    sums: by way, the summed affinities. counts: in how many measured steps both tasks had examples.
    in_one_pass: whether the steps' own backward passes gave all gradients so far.
    """

    sums: dict[str, list[list[float]]]
    counts: list[list[int]]
    in_one_pass: bool = True

    @classmethod
    def zero(cls, n_tasks: int, ways: Sequence[str]) -> AffinitySums:
        """Before the first measured step."""
        return cls(
            sums={way: [[0.0] * n_tasks for _ in range(n_tasks)] for way in ways},
            counts=[[0] * n_tasks for _ in range(n_tasks)],
        )

    def add(self, step: Mapping[str, Tensor], in_one_pass: bool) -> None:
        """Add the matrices of one step by way, (T, T), with NaN for pairs that it did not measure.

        A step with an infinite or undefined value for a pair, as overflows of fp16 give, does not count for it.
        """
        measured = torch.stack([matrix.isfinite() for matrix in step.values()]).all(0)
        self.in_one_pass &= in_one_pass
        for i, j in measured.nonzero().tolist():
            self.counts[i][j] += 1
            for way, matrix in step.items():
                self.sums[way][i][j] += float(matrix[i, j])

    @property
    def is_empty(self) -> bool:
        """Whether no step has been measured."""
        return not any(map(any, self.counts))

    def means(self, tasks: Sequence[str]) -> MeasuredAffinity:
        """The mean affinities; None for pairs that no step measured."""
        return MeasuredAffinity.model_validate(
            {
                "tasks": tasks,
                "steps": self.counts,
                "in_one_pass": self.in_one_pass,
                "ways": {way: self._divided(sums) for way, sums in self.sums.items()},
            }
        )

    def _divided(self, sums: Sequence[Sequence[float]]) -> list[list[float | None]]:
        return [
            [value / n if n else None for value, n in zip(*lines, strict=True)]
            for lines in zip(sums, self.counts, strict=True)
        ]


def is_measured(config: TrainConfig, step: int, steps: int, n_tasks: int) -> bool:
    """Whether a step (from 0) of a stage is measured: every ``train.affinity_every``-th one after the warm-up."""
    first = max(1, math.ceil(WARM_UP * steps))
    return bool(
        config.affinity is not None and n_tasks > 1 and step >= first and (step - first) % config.affinity_every == 0
    )


@dataclass(frozen=True, kw_only=True)
class AffinityOfStep:
    """Measures one step when it is called with its task gradients, and adds the result to ``sums``."""

    sums: AffinitySums
    runner: StepRunner
    number: int
    sequences: Sequence[Encoded]
    routes: Routes

    def __call__(self, gradients: TaskGradients) -> None:
        directions = {s.name: self._preconditioned(s, gradients) for s in gradients.shared}
        step = {GRADIENTS: first_order(gradients, directions)}
        if LOOKAHEAD in self.sums.sums:
            step[LOOKAHEAD] = self._lookahead(gradients, directions)
        self.sums.add(step, gradients.in_one_pass)

    @torch.no_grad()
    def _preconditioned(self, shared: SharedParameter, gradients: TaskGradients) -> Tensor:
        """P g_t of every task, (T, *shape of the shared part); absent tasks have zeros."""
        group, state = self.runner.group_of(shared.parameter)
        means = gradients.of_means(shared.name)
        if "exp_avg_sq" not in state:
            return torch.zeros_like(means)  # before its first step, a parameter has no preconditioner
        moment, steps = shared.part(state["exp_avg_sq"]), state["step"].to(shared.parameter.device, torch.float64)
        if steps.dim():
            shape = [-1 if d == shared.dim else 1 for d in range(moment.dim())]
            steps = (steps if shared.index is None else steps[shared.index]).view(shape).clamp(min=1)
        corrected = (moment / (1 - group["betas"][1] ** steps)).to(moment.dtype)
        preconditioned: Tensor = group["factor"] * means / (corrected.sqrt() + group["eps"])
        return preconditioned

    @torch.no_grad()
    def _lookahead(self, gradients: TaskGradients, directions: Mapping[str, Tensor]) -> Tensor:
        """Z with one forward pass for each source."""
        n_tasks = len(self.routes)
        found = torch.full((n_tasks, n_tasks), torch.nan, dtype=torch.float64)
        whole = self.runner.lr(self.number) * (1 - self.runner.config.beta1)
        before = {s.name: s.parameter.detach().clone() for s in gradients.shared}
        now = self.runner.losses(self.number, self.sequences, self.routes)
        for source in gradients.present:
            size = whole * float(gradients.shares[source])
            for shared in gradients.shared:
                move(shared, directions[shared.name][source], -size)
            after = self.runner.losses(self.number, self.sequences, self.routes)
            for shared in gradients.shared:
                shared.parameter.copy_(before[shared.name])
            found[source] = (1 - after / now) / size
        return found


@torch.no_grad()
def move(shared: SharedParameter, direction: Tensor, scale: float) -> None:
    """Add ``scale * direction`` to the shared part of a parameter."""
    change = (scale * direction).to(shared.parameter.dtype)
    if shared.index is None:
        shared.parameter.add_(change)
    else:
        shared.parameter.index_add_(shared.dim, shared.index, change)


@torch.no_grad()
def first_order(gradients: TaskGradients, directions: Mapping[str, Tensor]) -> Tensor:
    """<g_j, P g_i> / L_j, (T, T) float64 on the CPU; NaN where a task has no examples in the step."""
    n_tasks = len(gradients.shares)
    products = torch.zeros(n_tasks, n_tasks, dtype=torch.float64)
    for shared in gradients.shared:
        means = gradients.of_means(shared.name).flatten(1)
        products += (directions[shared.name].flatten(1) @ means.t()).double().cpu()
    return products.where(_both(gradients), torch.nan) / gradients.losses


def _both(gradients: TaskGradients) -> Tensor:
    """(T, T), True for pairs of tasks that both have examples in the step."""
    present = gradients.shares > 0
    return present[:, None] & present
