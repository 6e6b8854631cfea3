"""Gates: the weights of a bank's experts, computed from parameters inside each layer's forward.

T tasks, E experts, M labels (rows or tokens) of a route.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from methods.layers.routing import Route
from methods.layers.target import generator


class Gate(nn.Module):
    """Weights of experts that depend on the task alone: a table (T, E). ``splits`` Q > 1: (T, Q E), split by split."""

    splits = 1

    def table(self) -> Tensor:
        """The weights of all experts for every task, (T, E), without noise."""
        raise NotImplementedError

    def seen(self) -> Tensor:
        """The weights that a task may give, for reports: (T, experts that one task sees)."""
        return self.table()

    def active(self, task: int) -> Sequence[int] | None:
        """The experts that a task's folded LoRA holds; None: all."""
        return None

    def forward(self, route: Route) -> Tensor:
        """The weights of each label, (M, E).

        Of rows, without gradients and out of training, they are made once for a route: a decoded token's layers ask
        for the same ones again and again. (A route of tokens serves one forward, and its weights are many.)
        """
        once = not (self.training or route.tokens or torch.is_grad_enabled() or torch.compiler.is_compiling())
        return route.kept(self, self.sources(route), partial(self.weigh, route)) if once else self.weigh(route)

    def weigh(self, route: Route) -> Tensor:
        """The weights of each label, (M, E), made anew."""
        assert route.labels is not None
        return self.table()[route.labels]

    def sources(self, route: Route) -> list[Tensor]:
        """The tensors that decide what ``weigh`` gives out of training."""
        assert route.labels is not None
        return [route.labels, *_tensors(self)]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers as they are now; quicker than the module's own iterators, which look for doubles."""
    for tensors in (module._parameters, module._buffers):
        for tensor in tensors.values():
            if tensor is not None:
                yield tensor
    for child in module._modules.values():
        if child is not None:
            yield from _tensors(child)


class TaskEmbedding(nn.Module):
    """A vector for each task, N(0, 1) at the start, by the task's name: (T, size)."""

    def __init__(self, tasks: Sequence[str], size: int, seed: int) -> None:
        super().__init__()
        rows = [torch.randn(size, generator=generator(seed, "embedding", task)) for task in tasks]
        self.weight = nn.Parameter(torch.stack(rows))


class EmbeddingScores(nn.Module):
    """z_t = W e_t, without bias: one linear map of a task embedding for each expert that a task sees."""

    def __init__(self, embedding: TaskEmbedding, names: Sequence[object], seed: int) -> None:
        super().__init__()
        self.embedding = embedding
        size = embedding.weight.shape[1]
        rows = [torch.empty(size).uniform_(-1, 1, generator=generator(seed, "gate", name)) for name in names]
        self.weight = nn.Parameter(torch.stack(rows) / size**0.5)

    def forward(self) -> Tensor:
        return nn.functional.linear(self.embedding.weight, self.weight)


class FreeScores(nn.Module):
    """Free logits, 0 at the start."""

    def __init__(self, n_tasks: int, n: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_tasks, n))

    def forward(self) -> Tensor:
        return self.logits


class UniformScores(nn.Module):
    """No gate: every expert that a task sees weighs the same."""

    zeros: Tensor

    def __init__(self, n_tasks: int, n: int) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(n_tasks, n), persistent=False)

    def forward(self) -> Tensor:
        return self.zeros


class TaskGate(Gate):
    """Softmax over ``n_common`` experts of all tasks and ``n_specific`` of a task's own: E = n_common + T n_specific.

    The weights of a task sum to 1. ``separate``: one softmax for the common and one for the own experts, each with the
    share of its part's experts, so that equal scores weigh all experts the same.
    """

    eye: Tensor

    def __init__(self, scores: nn.Module, n_tasks: int, n_common: int, n_specific: int, separate: bool = False) -> None:
        super().__init__()
        self.scores = scores
        self.n_common = n_common
        self.n_specific = n_specific
        self.separate = separate
        self.register_buffer("eye", torch.eye(n_tasks), persistent=False)

    def seen(self) -> Tensor:
        """The weights that a task gives to common and own experts: (T, n_common + n_specific)."""
        scores: Tensor = self.scores()
        if not self.separate:
            return scores.softmax(-1)
        seen = self.n_common + self.n_specific
        parts = torch.split(scores, [self.n_common, self.n_specific], -1)
        return torch.cat([part.softmax(-1) * (part.shape[-1] / seen) for part in parts], -1)

    def table(self) -> Tensor:
        seen = self.seen()
        if not self.n_specific:
            return seen
        common, own = torch.split(seen, [self.n_common, self.n_specific], -1)
        return torch.cat([common, (self.eye[:, :, None] * own[:, None, :]).flatten(1)], -1)

    def active(self, task: int) -> Sequence[int]:
        first = self.n_common + task * self.n_specific
        return [*range(self.n_common), *range(first, first + self.n_specific)]
