"""A layer with one A for all heads: n factors B, summed or behind a task gate, and a small map of each task after A.

Shapes: M labels of a route, n input vectors for each label, T tasks, H heads of rank r, A (r, d_in), B (d_out, H r) the
stacked factors of the heads, z = A x (M, n, r).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from harness.method import LoRAFactors
from methods.layers.gates import Gate, Scores
from methods.layers.linear import AdaptedLinear, add_product
from methods.layers.prepared import Prepared
from methods.layers.routing import Route
from methods.layers.target import TargetModule, generator


class HeadScores(Scores):
    """Free logits w (T, H) divided by a temperature. Initially w is uniform in +-1 / sqrt(H) (kaiming, a = sqrt(5)).

    Args:
        key: the name of the layer; initial values depend only on (seed, key, task name).
    """

    task_rows = ("logits",)

    @classmethod
    def together(cls, scores: Sequence[Any]) -> Tensor:
        logits: Tensor = torch.stack([one.logits for one in scores]) / scores[0].temperature
        return logits

    def group_key(self) -> Hashable:
        return self.temperature

    def __init__(self, tasks: Sequence[str], n_heads: int, temperature: float, seed: int, key: str) -> None:
        super().__init__()
        bound = n_heads**-0.5
        rows = [
            torch.empty(n_heads).uniform_(-bound, bound, generator=generator(seed, key, "heads", task))
            for task in tasks
        ]
        self.logits = nn.Parameter(torch.stack(rows))
        self.temperature = temperature

    def forward(self) -> Tensor:
        return self.logits / self.temperature

    @torch.no_grad()
    def reset(self, tasks: Sequence[int]) -> None:
        """Give these tasks equal weights of all heads."""
        self.logits[list(tasks)] = 0


class TaskMap(nn.Module):
    """A linear map Lambda_t of z for each task, initially the identity: (T, r, r), or its diagonal (T, r)."""

    task_rows = ("weight",)

    def __init__(self, n_tasks: int, rank: int, diagonal: bool) -> None:
        super().__init__()
        start = torch.ones(rank) if diagonal else torch.eye(rank)
        self.weight = nn.Parameter(start.repeat(n_tasks, *[1] * start.dim()))
        self.diagonal = diagonal

    def forward(self, z: Tensor, route: Route) -> Tensor:
        """Lambda_t z (M, n, r) for the task of each label."""
        labels = route.labels
        assert labels is not None
        weight = self.weight.to(z.dtype)
        if self.diagonal:
            return z * (route.own(z.dtype) @ weight)[:, None]
        assert route.present_tasks is not None
        if len(route.present_tasks) == 1:
            return linear(z, weight.index_select(0, route.present_tasks)[0])
        if not route.tokens:
            return torch.bmm(z, weight[labels].transpose(1, 2))
        # A map gathered for each token takes r times the memory of the token's z, so that all present tasks' maps are
        # applied to z, which is 0 for the maps of other tasks.
        maps = weight[route.present_tasks].transpose(1, 2).flatten(0, 1)
        return select_rows(z, route.own_of_present(z.dtype)) @ maps

    def of(self, task: int, a: Tensor) -> Tensor:
        """Lambda_t A (r, d_in) of one task, without gradient."""
        weight = self.weight.detach()[task]
        return weight[:, None] * a if self.diagonal else weight @ a


def select_rows(z: Tensor, own: Tensor) -> Tensor:
    """z (M, n, r) in the columns of its task, and 0 in those of the other P - 1 present tasks: (M, n, P r).

    own: (M, P), 1 for the task of each label.

    Its product with a matrix of each present task, (P r, k), applies to each z that of its task.
    """
    return (own[:, None, :, None] * z[:, :, None]).flatten(2)


def _parameters(*modules: nn.Module) -> list[Tensor]:
    return [parameter for module in modules for parameter in module.parameters()]


class HeadsLinear(AdaptedLinear):
    """``out + scale sum_i g_ti B_i drop_i(Lambda_t A x)``: one A, H heads B_i, initially zero.

    Args:
        n_heads, rank: H and r.
        scale: the factor on the whole update.
        gate: the weights g of the heads by task; None: every weight is 1.
        task_map: Lambda; None: the identity.
        head_dropout: the probability with which entries of z are dropped in training, with a mask for each head. It
            depends on the micro-batch, as ``dropout`` does.
    """

    def __init__(
        self,
        target: TargetModule,
        *,
        n_heads: int,
        rank: int,
        scale: float,
        gate: Gate | None = None,
        task_map: TaskMap | None = None,
        head_dropout: float = 0.0,
    ) -> None:
        super().__init__(target)
        # These are the A and the zeros of a plain LoRA; B has a block of columns for each head.
        self.a = target.experts([0], rank).a
        self.b = nn.Parameter(self.a.detach().new_zeros(self.out_features, n_heads * rank))
        self.gate, self.task_map = gate, task_map
        self.n_heads, self.scale, self.head_dropout = n_heads, scale, head_dropout

    def factors(self) -> Mapping[str, nn.Parameter]:
        return {"A": self.a, "B": self.b}

    def gates(self) -> Sequence[Gate]:
        return () if self.gate is None or self._gated_map() else (self.gate,)

    @classmethod
    def prepare(cls, layers: Sequence[HeadsLinear], dtype: torch.dtype) -> None:
        """For each layer g_ti Lambda_t of the present tasks and all heads, (P r, H r): one product for two steps."""
        route = layers[0].route
        gated = [layer for layer in layers if layer._gated_map() and route.tokens]
        groups: dict[Hashable, list[HeadsLinear]] = {}
        for layer in gated:
            assert layer.gate is not None
            groups.setdefault(layer.gate.group_key(route), []).append(layer)
        for group in groups.values():
            gates, maps = [cast("Gate", one.gate) for one in group], [cast("TaskMap", one.task_map) for one in group]
            g = type(gates[0]).tables(gates)  # (L, T, H)
            weights = torch.stack([task_map.weight for task_map in maps])  # (L, T, r, r)
            assert route.present_tasks is not None
            g, weights = g.index_select(1, route.present_tasks), weights.index_select(1, route.present_tasks)
            turned = weights.transpose(2, 3).contiguous()
            both = g[:, :, None, :, None] * turned[:, :, :, None]  # (L, P, r, H, r)
            for layer, gate, task_map, one in zip(group, gates, maps, both.to(dtype).unbind(), strict=True):
                value = (route.own_of_present(dtype), one.flatten(0, 1).flatten(1))
                layer.prepared = Prepared(value, 1, partial(_parameters, gate, task_map))

    def _gated_map(self) -> bool:
        return self.gate is not None and self.task_map is not None and not self.task_map.diagonal

    def delta(self, out: Tensor, x: Tensor) -> Tensor:
        z = linear(x, self.a.to(x.dtype))
        prepared: tuple[Tensor, Tensor] | None = None if self.prepared is None else self.prepared.take()
        if prepared is not None:
            own, weights = prepared
            heads = select_rows(z, own) @ weights
            return add_product(out, self._drop_heads(heads), self.b.to(x.dtype), self.scale)
        if self.task_map is not None:
            z = self.task_map(z, self.route)
        if self.gate is None:
            heads = z.repeat(1, 1, self.n_heads)
        else:
            g = self.gate(self.route).to(z.dtype)
            heads = (z[:, :, None] * g[:, None, :, None]).flatten(2)
        return add_product(out, self._drop_heads(heads), self.b.to(x.dtype), self.scale)

    def _drop_heads(self, heads: Tensor) -> Tensor:
        return dropout(heads, self.head_dropout, self.training) if self.head_dropout else heads

    @torch.no_grad()
    def fold(self, task: int) -> LoRAFactors:
        a = self.a.detach()
        a = a.clone() if self.task_map is None else self.task_map.of(task, a)
        heads = torch.unflatten(self.b.detach(), 1, (self.n_heads, -1))
        g = heads.new_ones(self.n_heads) if self.gate is None else self.gate.task_weights()[task].to(heads)
        return LoRAFactors(a=a, b=self.scale * torch.einsum("h,ohr->or", g, heads))
