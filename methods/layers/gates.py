"""Gates: the weights of a layer's experts. In training those of all layers are computed together (see ``Prepared``).

Shapes: T tasks, E experts, M labels (of sequences or tokens) of a route, L gates that are computed together.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from methods.layers.casting import pad_weights
from methods.layers.prepared import Prepared
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
    prepared: Prepared[Tensor] | None = None
    columns: int | None = None  # Of weights that are computed together; more than E have the weight 0.

    @classmethod
    def tables(cls, gates: Sequence[Gate]) -> Tensor:
        """``task_weights`` of gates with equal ``group_key``: (L, T, E)."""
        return torch.stack([gate.task_weights() for gate in gates])

    @classmethod
    def of_labels(cls, gates: Sequence[Gate], route: Route, dtype: torch.dtype) -> Sequence[Tensor]:
        """``label_weights`` of gates with equal ``group_key``, (M, E) each, or (M, ``columns``)."""
        return select_labels(route.own(dtype), cls.tables(gates).to(dtype), gates[0].columns)

    def group_key(self, route: Route) -> Hashable:
        """Gates with equal keys are computed together; None for a gate that must be computed in its layer's forward."""
        return id(self) if type(self).label_weights is Gate.label_weights else None

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
        if self.prepared is not None and (weights := self.prepared.take()) is not None:
            return weights
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


def select_labels(own: Tensor, tables: Tensor, columns: int | None = None) -> Sequence[Tensor]:
    """For each label its row of each table: from own (M, rows) and tables (L, rows, E), L tensors (M, E).

    columns: the number of columns of each, if it is larger than E; those after E are 0.

    Tables come first in memory, so that the gradient of each is a contiguous part of one tensor and needs no copy.
    """
    if columns is not None:
        tables = pad_weights(tables, columns)
    return torch.unflatten(own @ tables.transpose(0, 1).flatten(1), -1, (len(tables), -1)).unbind(1)


def prepare_gates(uses: Mapping[Gate, int], columns: Mapping[Gate, int], route: Route, dtype: torch.dtype) -> None:
    """Compute the weights of each label by all gates that can be computed together.

    Args:
        uses: the number of layers that read each gate. dtype: of the layers.
        columns: of the weights of gates whose layers have padded experts.
    """
    groups: dict[Hashable, list[Gate]] = {}
    for gate in uses:
        gate.columns = columns.get(gate)
        if (key := gate.group_key(route)) is not None:
            groups.setdefault((type(gate), gate.training, gate.columns, key), []).append(gate)
    for gates in groups.values():
        for gate, weights in zip(gates, type(gates[0]).of_labels(gates, route, dtype), strict=True):
            gate.prepared = Prepared(weights, uses[gate], partial(_tensor_list, gate))


def _tensor_list(module: nn.Module) -> list[Tensor]:
    return list(_tensors(module))


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


class Scores(nn.Module):
    """The scores z of a gate, from parameters only: (T, n)."""

    @classmethod
    def together(cls, scores: Sequence[Scores]) -> Tensor:
        """The scores of several gates with equal ``group_key``: (L, T, n)."""
        return torch.stack([one() for one in scores])

    def group_key(self) -> Hashable:
        """Scores with equal keys are computed together."""
        return ()


class EmbeddingScores(Scores):
    """z_t = W e_t without bias: one row of W for each expert of a task. Initially uniform in +-1 / sqrt(size)."""

    def __init__(self, embedding: TaskEmbedding, names: Sequence[object], seed: int) -> None:
        super().__init__()
        self.embedding = embedding
        size = embedding.weight.shape[1]
        rows = [torch.empty(size).uniform_(-1, 1, generator=generator(seed, "gate", name)) for name in names]
        self.weight = nn.Parameter(torch.stack(rows) / size**0.5)

    @classmethod
    def together(cls, scores: Sequence[Any]) -> Tensor:
        weights = torch.cat([one.weight for one in scores])
        found = nn.functional.linear(scores[0].embedding.weight, weights)
        return torch.unflatten(found, 1, (len(scores), -1)).transpose(0, 1)

    def group_key(self) -> Hashable:
        return id(self.embedding)

    def forward(self) -> Tensor:
        return nn.functional.linear(self.embedding.weight, self.weight)


class FreeScores(Scores):
    """Free logits (T, n), initially 0."""

    task_rows = ("logits",)

    def __init__(self, n_tasks: int, n: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_tasks, n))

    def forward(self) -> Tensor:
        return self.logits


class UniformScores(Scores):
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

    @classmethod
    def tables(cls, gates: Sequence[Any]) -> Tensor:
        scores = [gate.scores for gate in gates]
        kind = type(scores[0]) if isinstance(scores[0], Scores) else Scores
        weights: Tensor = gates[0].all_weights(gates[0].softmax(kind.together(scores)))
        return weights

    def group_key(self, route: Route) -> Hashable:
        kind = type(self.scores)
        own = self.scores.group_key() if isinstance(self.scores, Scores) else id(self.scores)
        return (kind, own, len(self.eye), self.n_common, self.n_specific, self.separate)

    def visible_weights(self) -> Tensor:
        """The weights of the common and the task's own experts: (T, n_common + n_specific)."""
        scores: Tensor = self.scores()
        return self.softmax(scores)

    def softmax(self, scores: Tensor) -> Tensor:
        """Weights from scores, (..., T, n_common + n_specific) both."""
        if not self.separate:
            return scores.softmax(-1)
        n_experts = self.n_common + self.n_specific
        parts = torch.split(scores, [self.n_common, self.n_specific], -1)
        return torch.cat([part.softmax(-1) * (part.shape[-1] / n_experts) for part in parts], -1)

    def task_weights(self) -> Tensor:
        return self.all_weights(self.visible_weights())

    def all_weights(self, visible: Tensor) -> Tensor:
        """(..., T, E) from (..., T, n_common + n_specific): 0 for the specific experts of other tasks."""
        if not self.n_specific:
            return visible
        common, own = torch.split(visible, [self.n_common, self.n_specific], -1)
        return torch.cat([common, (self.eye[:, :, None] * own[..., None, :]).flatten(-2)], -1)

    def expert_tasks(self) -> Sequence[int | None]:
        own = [task for task in range(len(self.eye)) for _ in range(self.n_specific)]
        return [*[None] * self.n_common, *own] if own else ()

    def active_experts(self, task: int) -> Sequence[int]:
        first = self.n_common + task * self.n_specific
        return [*range(self.n_common), *range(first, first + self.n_specific)]
