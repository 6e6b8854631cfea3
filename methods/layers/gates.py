"""Gates: the weights of a layer's experts, computed from parameters inside the forward of each layer.

Shapes: T tasks, E experts, M labels (of sequences or tokens) of a route.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from methods.layers.routing import Route
from methods.layers.target import generator


@runtime_checkable
class HasTaskRows(Protocol):
    """A module with parameters of which row t is used by task t alone.

    task_rows: the names of its attributes that hold them.
    """

    task_rows: ClassVar[Sequence[str]]


class Gate(nn.Module):
    """Expert weights that depend only on the task.

    splits: the number Q of feature splits (MHR), each with E weights of its own; all shapes below then have Q E for E.
    """

    splits = 1

    def task_weights(self) -> Tensor:
        """The weights of all experts for every task, (T, E), without noise."""
        raise NotImplementedError

    def visible_weights(self) -> Tensor:
        """For reports, the weights of the experts that a task uses: (T, experts of one task)."""
        return self.task_weights()

    def active_experts(self, task: int) -> Sequence[int] | None:
        """The experts in a task's folded LoRA; None: all."""
        return None

    def expert_tasks(self) -> Sequence[int | None]:
        """For each expert, the task that alone has it; None: several tasks have it. Empty: this holds for all."""
        return ()

    def forward(self, route: Route) -> Tensor:
        """The weights of each label, (M, E).

        In evaluation without gradients they are computed once for a route of sequences, since every layer and every
        decoded token uses the same ones. A route of tokens serves one forward and has many weights, so it has no cache.
        """
        if self.training or route.tokens or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.label_weights(route)
        return route.cached(self, self.inputs(route), partial(self.label_weights, route))

    def label_weights(self, route: Route) -> Tensor:
        """The weights of each label, (M, E), without the cache."""
        assert route.labels is not None
        return self.task_weights()[route.labels]

    def inputs(self, route: Route) -> list[Tensor]:
        """The tensors that determine ``label_weights`` in evaluation."""
        assert route.labels is not None
        return [route.labels, *_tensors(self)]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """The module's parameters and buffers; faster than its own iterators, which also remove duplicates."""
    for tensors in (module._parameters, module._buffers):
        for tensor in tensors.values():
            if tensor is not None:
                yield tensor
    for child in module._modules.values():
        if child is not None:
            yield from _tensors(child)


class TaskEmbedding(nn.Module):
    """A vector e_t for each task: (T, size). Initial values are N(0, 1) and depend only on (seed, task name)."""

    task_rows = ("weight",)

    def __init__(self, tasks: Sequence[str], size: int, seed: int) -> None:
        super().__init__()
        rows = [torch.randn(size, generator=generator(seed, "embedding", task)) for task in tasks]
        self.weight = nn.Parameter(torch.stack(rows))


class EmbeddingScores(nn.Module):
    """z_t = W e_t without bias: one row of W for each expert of a task. Initially uniform in +-1 / sqrt(size)."""

    def __init__(self, embedding: TaskEmbedding, names: Sequence[object], seed: int) -> None:
        super().__init__()
        self.embedding = embedding
        size = embedding.weight.shape[1]
        rows = [torch.empty(size).uniform_(-1, 1, generator=generator(seed, "gate", name)) for name in names]
        self.weight = nn.Parameter(torch.stack(rows) / size**0.5)

    def forward(self) -> Tensor:
        return nn.functional.linear(self.embedding.weight, self.weight)


class FreeScores(nn.Module):
    """Free logits (T, n), initially 0."""

    task_rows = ("logits",)

    def __init__(self, n_tasks: int, n: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_tasks, n))

    def forward(self) -> Tensor:
        return self.logits


class UniformScores(nn.Module):
    """No gate: all experts of a task have the same weight."""

    zeros: Tensor

    def __init__(self, n_tasks: int, n: int) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(n_tasks, n), persistent=False)

    def forward(self) -> Tensor:
        return self.zeros


class TaskGate(Gate):
    """Softmax over ``n_common`` shared experts and ``n_specific`` experts of the task: E = n_common + T n_specific.

    The weights of a task sum to 1. With ``separate`` the common and the specific experts have a softmax each, scaled by
    their share of the experts, so that equal scores give all experts the same weight.

    Args:
        scores: a module without inputs that returns z (T, n_common + n_specific).
    """

    eye: Tensor

    def __init__(self, scores: nn.Module, n_tasks: int, n_common: int, n_specific: int, separate: bool = False) -> None:
        super().__init__()
        self.scores = scores
        self.n_common = n_common
        self.n_specific = n_specific
        self.separate = separate
        self.register_buffer("eye", torch.eye(n_tasks), persistent=False)

    def visible_weights(self) -> Tensor:
        """The weights of the common and the task's own experts: (T, n_common + n_specific)."""
        scores: Tensor = self.scores()
        if not self.separate:
            return scores.softmax(-1)
        n_experts = self.n_common + self.n_specific
        parts = torch.split(scores, [self.n_common, self.n_specific], -1)
        return torch.cat([part.softmax(-1) * (part.shape[-1] / n_experts) for part in parts], -1)

    def task_weights(self) -> Tensor:
        weights = self.visible_weights()
        if not self.n_specific:
            return weights
        common, own = torch.split(weights, [self.n_common, self.n_specific], -1)
        return torch.cat([common, (self.eye[:, :, None] * own[:, None, :]).flatten(1)], -1)

    def expert_tasks(self) -> Sequence[int | None]:
        own = [task for task in range(len(self.eye)) for _ in range(self.n_specific)]
        return [*[None] * self.n_common, *own] if own else ()

    def active_experts(self, task: int) -> Sequence[int]:
        first = self.n_common + task * self.n_specific
        return [*range(self.n_common), *range(first, first + self.n_specific)]
