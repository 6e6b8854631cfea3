"""The gradient of every task's loss of a step with respect to the shared trained parameters.

Shapes: T tasks (the routes of the adapter), P numbers in the shared parts of all parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.method import Adapter
from harness.runtime.distributed import ProcessGroup
from harness.training.batch import Batch, Weighted, task_shares
from harness.training.optimiser import TrainedParameter
from harness.training.task_products import BatchRows, ProductObserver, SharedParameter, owned_rows


def shared_parameters(trained: Mapping[str, TrainedParameter]) -> tuple[SharedParameter, ...]:
    """The parts of a stage's parameters that do not belong to single tasks; parameters without any are left out."""
    found = []
    for name, one in trained.items():
        if one.parts is None:
            found.append(SharedParameter(name=name, parameter=one.parameter))
            continue
        shared = [i for i, task in enumerate(one.parts.tasks) if task is None]
        if shared:
            index = torch.tensor(shared).to(one.parameter.device)
            found.append(SharedParameter(name=name, parameter=one.parameter, dim=one.parts.dim, index=index))
    return tuple(found)


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskGradients:
    """The gradients of one step, over all its micro-batches and processes, before clipping.

    shared: the parameters. by_name: for each (T, *shape of its shared part), the gradient of the task's share of the
        step's loss. The sum over tasks is the gradient of the step without the adapter's penalty; divided by the task's
        entry in ``shares`` it is that of the task's mean loss, weighted as ``train.loss`` says.
    shares: (T,) float64 on the CPU, the weight of the task's tokens in the loss; they sum to 1. 0: without examples.
    losses: (T,) float64 on the CPU, the mean loss of each task, weighted as the gradients are; NaN without examples.
    in_one_pass: the step's own backward passes gave them, in this process; otherwise another pass did.
    """

    shared: Sequence[SharedParameter]
    by_name: Mapping[str, Tensor]
    shares: Tensor
    losses: Tensor
    in_one_pass: bool

    @property
    def present(self) -> list[int]:
        """The tasks with examples in this step."""
        return [task for task, share in enumerate(self.shares.tolist()) if share]

    def of_means(self, name: str) -> Tensor:
        """(T, *shape of the shared part): the gradients of the tasks' mean losses; zeros for absent tasks."""
        by_task = self.by_name[name]
        factors = torch.where(self.shares > 0, 1 / self.shares, 0.0).to(by_task.device, by_task.dtype)
        return by_task * factors.view(-1, *[1] * (by_task.dim() - 1))

    def flat(self) -> Tensor:
        """(T, P): the gradients of the tasks' shares of the loss, with all parameters one after another."""
        return torch.cat([self.by_name[s.name].flatten(1) for s in self.shared], 1)

    @torch.no_grad()
    def replace(self, combined: Tensor) -> None:
        """Set the shared parts of the parameters' gradients to ``combined`` (P,), in place of the sum over tasks.

        The share of the adapter's penalty, which belongs to all tasks together, stays in a gradient.
        """
        parts = torch.split(combined, [self.by_name[s.name][0].numel() for s in self.shared])
        for shared, part in zip(self.shared, parts, strict=True):
            by_task, gradient = self.by_name[shared.name], shared.parameter.grad
            change = (part.view(by_task.shape[1:]) - by_task.sum(0)).to(shared.parameter.dtype)
            if gradient is None:
                continue
            if shared.index is None:
                gradient.add_(change)
            else:
                gradient.index_add_(shared.dim, shared.index, change)


class TaskGradientSums:
    """Adds up task gradients over the micro-batches of a step: ``begin``, ``observe`` each one, ``finish``.

    Where every shared parameter is used in products with rows of known tasks (``ProductObserver``), the step's own
    backward pass gives the gradients. Otherwise ``complete`` is False after the micro-batches, and another pass over
    the same sequences is due, in micro-batches of one task each (``add_alone``).
    """

    def __init__(self, adapter: Adapter, trained: Mapping[str, TrainedParameter], n_tasks: int, observes: bool) -> None:
        """
        Args:
            trained: the parameters of the stage.
            observes: False to use the other pass always, where products cannot be observed (a compiled model).
        """
        self.shared = shared_parameters(trained)
        self.totals: dict[str, Tensor] = {}
        self._losses = torch.zeros(n_tasks, dtype=torch.float64)
        self._owned = owned_rows(adapter.trainable(), adapter.task_parts())
        self._n_tasks, self._observes = n_tasks, observes
        self._observer: ProductObserver | None = None

    @property
    def complete(self) -> bool:
        """Whether the step's own backward passes give the gradients."""
        return self._observes

    def begin(self) -> None:
        """Start a step, or an attempt at it, from zero."""
        self.begin_alone()
        self._losses.zero_()

    def begin_alone(self) -> None:
        """Start the other pass over the same sequences, whose losses are known."""
        self.totals = {
            s.name: s.parameter.new_zeros(self._n_tasks, *s.part(s.parameter).shape, requires_grad=False)
            for s in self.shared
        }

    @property
    def observer(self) -> ProductObserver | None:
        """The observer of the current micro-batch, which checkpointed layers enter when they repeat their forward."""
        return self._observer

    @contextmanager
    def observe(self, batch: Batch) -> Iterator[None]:
        """Around the route of one micro-batch, with its forward and backward passes."""
        if not self._observes:
            yield
            return
        sizes = frozenset(mask.numel() for mask in batch.masks)
        rows = BatchRows(tasks=batch.routes.flatten().tolist(), sizes=sizes, owned=self._owned)
        self._observer = ProductObserver(self.shared, self.totals, rows)
        try:
            with self._observer:
                yield
            self._observes = not self._observer.unreached
        finally:
            self._observer = None

    def backward_before(self, loss: Tensor) -> None:
        """Inside ``observe``: a backward pass for the task gradients alone, without the penalty, which has one to come.

        It leaves no gradient at the parameters, so that the step's own is the same with and without this pass.
        """
        if self._observer is None:
            return
        before = {s.parameter: s.parameter.grad for s in self.shared}
        for parameter in before:
            parameter.grad = None  # backward adds in place to a gradient that is there
        torch.autograd.backward(loss, retain_graph=True, inputs=list(before))
        for parameter, gradient in before.items():
            parameter.grad = gradient
        self._observer.active = False

    def add_alone(self, loss: Tensor, task: int) -> None:
        """Add the gradient of a loss of one task's sequences."""
        found = torch.autograd.grad(loss, [s.parameter for s in self.shared], allow_unused=True)
        for shared, gradient in zip(self.shared, found, strict=True):
            if gradient is not None:
                self.totals[shared.name][task] += shared.part(gradient)

    def add_losses(self, batch: Batch, losses: Tensor) -> None:
        """Add the weighted losses of a micro-batch's labels (N,)."""
        self._losses.index_add_(0, batch.tasks.cpu(), (losses.double() * batch.weights).cpu())

    def finish(self, weighted: Sequence[Weighted], scale: float, processes: ProcessGroup) -> TaskGradients:
        """The gradients of the step. weighted: all its sequences. scale: the factor of the loss scaler."""
        shares = torch.tensor(task_shares(weighted, self._n_tasks), dtype=torch.float64)
        # On the device of the parameters, since a group of GPUs exchanges no tensors of the CPU.
        device = self.shared[0].parameter.device if self.shared else self._losses.device
        losses = processes.all_reduce(self._losses.to(device)).cpu() / shares
        for total in self.totals.values():
            processes.all_reduce(total.div_(scale))
        gradients = TaskGradients(
            shared=self.shared, by_name=self.totals, shares=shares, losses=losses, in_one_pass=self.complete
        )
        self.totals = {}
        return gradients
