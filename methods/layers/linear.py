"""Expert layers: a frozen linear layer and E low-rank experts, computed without a loop over the experts.

Shapes: M labels of a route, n input vectors for each label (the tokens of a sequence, times beams), V = M n, E experts
of rank r, A (E r, d_in) and B (d_out, E r) the stacked factors of the experts, g (M, E) the weights of the experts, or
(M, n, E) where each vector has its own.

The output of a base layer is a matrix (V, d_out), to which the update is added in place: neither the layer nor its
backward pass needs the output before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from harness.method import Experts, LoRAFactors, TaskParts
from methods.layers.casting import CastFactors, cast_experts, pad_weights, padded_experts
from methods.layers.fused import FoldedLoRA
from methods.layers.gates import Gate
from methods.layers.prepared import Prepared
from methods.layers.routing import Route, State
from methods.layers.target import ExpertFactors, TargetModule


def output_sum(out: Tensor, x: Tensor, a: Tensor, b: Tensor, g: Tensor, scale: float) -> Tensor:
    """``out + scale sum_k g_k B_k A_k x`` for out (V, d_out) and x (M, n, d_in): one LoRA of rank E r.

    The experts may share one A (r, d_in).
    """
    z = linear(x, a)
    g = g.to(z.dtype)
    g = g if g.dim() == 3 else g[:, None]
    weighted = torch.unflatten(z, -1, (-1, b.shape[1] // g.shape[-1])) * g[..., None]
    return add_product(out, weighted.flatten(2), b, scale)


def factor_sum(out: Tensor, x: Tensor, a: Tensor, b: Tensor, g: Tensor, scale: float) -> Tensor:
    """``out + scale (sum_k g_k B_k) (sum_k g_k A_k) x`` for out (V, d_out) and x (M, n, d_in)."""
    z = linear(x, a)
    g = g.to(z.dtype)[:, None, :, None]
    u = (torch.unflatten(z, -1, (g.shape[2], -1)) * g).sum(2, keepdim=True)
    return add_product(out, (g * u).flatten(2), b, scale)


def split_factor_sum(out: Tensor, x: Tensor, a: Tensor, b: Tensor, g: Tensor, splits: int, scale: float) -> Tensor:
    """``factor_sum`` with separate weights, g (M, Q E), for each of Q equal parts of d_in and of d_out (MHR)."""
    g = torch.unflatten(g.to(x.dtype), 1, (splits, -1))
    experts = g.shape[2]
    a = a.reshape(experts, -1, splits, a.shape[1] // splits)
    b = b.reshape(splits, b.shape[0] // splits, experts, -1)
    z = torch.einsum("mnqd,krqd->mnqkr", torch.unflatten(x, -1, (splits, -1)), a)
    u = torch.einsum("mnqkr,mqk->mnr", z, g)
    return out + scale * torch.einsum("mqk,mnr,qokr->mnqo", g, u, b).reshape(out.shape)


def add_product(out: Tensor, z: Tensor, b: Tensor, scale: float) -> Tensor:
    """``out + scale B z`` in place, for out (V, d_out) and z of V vectors (..., rank)."""
    return out.addmm_(z.reshape(-1, z.shape[-1]), b.t(), alpha=scale)


class AdaptedLinear(nn.Module):
    """A frozen linear layer (``base``) and what a method adds to it, depending on the state of the adapter's route.

    It replaces the base layer in the model under the same name. A forward in the routed state without a route raises
    RuntimeError. Subclasses define what the routed state adds (``delta``) and how a task's share is folded (``fold``).

    drops_input: ``delta`` gets the input after dropout. If not, it applies ``drop`` itself, to what it chooses.
    """

    drops_input: ClassVar[bool] = True

    def __init__(self, target: TargetModule) -> None:
        super().__init__()
        self.base = target.linear
        self.name = target.name
        self.route: Route = target.route
        self.dropout = target.dropout
        self.folded: FoldedLoRA | None = None
        self.prepared: Prepared[Any] | None = None

    def delta(self, out: Tensor, x: Tensor) -> Tensor:
        """``out`` (V, d_out), which may be written to, plus the share of each label's task in x (M, n, d_in)."""
        raise NotImplementedError

    def fold(self, task: int) -> LoRAFactors:
        """The share of a task (its index) as one plain LoRA, detached. Raises: NotFoldable."""
        raise NotImplementedError

    def factors(self) -> Mapping[str, nn.Parameter]:
        """The layer's own parameters by name, without those of gates, which layers may share."""
        raise NotImplementedError

    def task_parts(self) -> Mapping[str, TaskParts]:
        """The factors that have parts of single tasks, by name; see ``Adapter.task_parts``."""
        return {}

    def experts(self) -> Experts | None:
        """The experts, if every sequence uses a weighted sum of them; otherwise None."""
        return None

    def gates(self) -> Sequence[Gate]:
        """The gates by which ``delta`` weighs experts."""
        return ()

    def gate_columns(self, multiple: int) -> Mapping[Gate, int]:
        """The number of experts by gate, if it is padded so that the rank is a multiple; see ``casting``."""
        return {}

    @classmethod
    def prepare(cls, layers: Sequence[Self], dtype: torch.dtype) -> None:
        """Compute what layers of this class can compute together before a forward with gradients, in ``prepared``."""

    def forward(self, x: Tensor) -> Tensor:
        state = self.route.state
        if state is State.ROUTED:
            return self._routed(x).view(*x.shape[:-1], -1)
        if state is State.FOLDED and self.folded is not None:
            return add_product(self._base(x), self.folded.down(x), self.folded.b, 1.0).view(*x.shape[:-1], -1)
        out: Tensor = self.base(x)
        return out

    def _base(self, x: Tensor) -> Tensor:
        """The base layer's output as a matrix (V, d_out) that may be written to."""
        out: Tensor = self.base(x.reshape(-1, x.shape[-1]))
        # A layer of another kind may need its output for the backward pass.
        return out if type(self.base) is nn.Linear else out.clone()

    def require_labels(self, x: Tensor) -> Tensor:
        """The labels of the route, which divide the vectors of x (..., d). Raises: RuntimeError."""
        labels = self.route.labels
        if labels is None:
            raise RuntimeError(
                f"{self.name}: forward without a route. Enter adapter.route(labels), adapter.off() or "
                "adapter.apply(factors) first, and leave it after backward"
            )
        n_vectors = x.shape[:-1].numel()
        if n_vectors % labels.numel():
            raise RuntimeError(
                f"{self.name}: the route has {labels.numel()} labels, which do not divide the {n_vectors} vectors of "
                f"the input {tuple(x.shape)}; give a label for each sequence or each token"
            )
        return labels

    def _routed(self, x: Tensor) -> Tensor:
        n_labels = self.require_labels(x).numel()
        out = self._base(x)
        if self.drops_input:
            x = self.drop(x)
        return self.delta(out, x.reshape(n_labels, x.shape[:-1].numel() // n_labels, -1))

    def drop(self, x: Tensor) -> Tensor:
        """The input after dropout, which has one mask for each layer and is active in training only."""
        return dropout(x, self.dropout, self.training) if self.dropout else x

    # Some models read these attributes of a linear layer (T5 casts the input to the dtype of its output layer).

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features


class GatedLinear(AdaptedLinear):
    """E experts for all tasks, weighted by a gate: ``out + scale sum_k g_k B_k A_k x`` (or the factor sum).

    Args:
        factors: A and B, see ``TargetModule.experts``.
        rank: the rank r of each expert.
        scale: the factor on the whole update.
        merge: "output" sums the outputs of the experts, "factor" their factors.
    """

    def __init__(
        self,
        target: TargetModule,
        factors: ExpertFactors,
        gate: Gate,
        *,
        rank: int,
        scale: float,
        merge: str = "output",
    ) -> None:
        super().__init__(target)
        self.a, self.b = factors.a, factors.b
        self.gate = gate
        self.rank, self.scale, self.merge = rank, scale, merge

    def factors(self) -> Mapping[str, nn.Parameter]:
        return {"A": self.a, "B": self.b}

    def task_parts(self) -> Mapping[str, TaskParts]:
        tasks = tuple(task for task in self.gate.expert_tasks() for _ in range(self.rank))
        return {name: TaskParts(dim=dim, tasks=tasks) for name, dim in (("A", 0), ("B", 1)) if tasks}

    def experts(self) -> Experts | None:
        if self.gate.splits > 1:
            return None
        return Experts(
            a=torch.split(self.a, self.rank),
            b=torch.split(self.b, self.rank, 1),
            weights=lambda: self.gate(self.route),
            merge=self.merge,
            scale=self.scale,
        )

    def gates(self) -> Sequence[Gate]:
        return (self.gate,)

    def gate_columns(self, multiple: int) -> Mapping[Gate, int]:
        n_experts = self.b.shape[1] // self.rank
        padded = n_experts if n_experts == 1 else padded_experts(n_experts, self.rank, multiple)
        return {} if padded == n_experts or self.gate.splits > 1 else {self.gate: padded}

    def delta(self, out: Tensor, x: Tensor) -> Tensor:
        g: Tensor = self.gate(self.route)
        if self.gate.splits > 1:
            a, b = self.a.to(x.dtype), self.b.to(x.dtype)
            return split_factor_sum(out, x, a, b, g, self.gate.splits, self.scale)
        cast = cast_experts(self.a, self.b, self.rank, x, self.route)
        return weighted_sum(out, x, cast, g, self.merge, self.scale)

    def fold(self, task: int) -> LoRAFactors:
        return fold_experts(self.a, self.b, self.gate, task, self.merge, self.rank, self.scale)


def weighted_sum(out: Tensor, x: Tensor, cast: CastFactors, g: Tensor, merge: str, scale: float) -> Tensor:
    """The sum over experts that ``merge`` selects; g has the weight of each, or 0 for more experts as well."""
    g = pad_weights(g, cast.n_experts)
    return (output_sum if merge == "output" else factor_sum)(out, x, cast.a, cast.b, g, scale)


@torch.no_grad()
def fold_experts(a: Tensor, b: Tensor, gate: Gate, task: int, merge: str, rank: int, scale: float) -> LoRAFactors:
    """A task's weighted sum as one LoRA: of rank (active experts) r for an output sum, of rank r for a factor sum."""
    a, b = torch.unflatten(a.detach(), 0, (-1, rank)), torch.unflatten(b.detach(), 1, (-1, rank))
    g = gate.task_weights()[task]
    if merge == "output":
        chosen = torch.as_tensor(gate.active_experts(task) or range(len(a)), device=a.device)
        weighted = b[:, chosen] * (scale * g[chosen])[:, None]
        return LoRAFactors(a=a[chosen].flatten(0, 1).clone(), b=weighted.flatten(1))
    g = torch.unflatten(g, 0, (gate.splits, -1))
    a = torch.einsum("qk,krqd->rqd", g, torch.unflatten(a, 2, (gate.splits, -1)))
    b = torch.einsum("qk,qokr->qor", g, torch.unflatten(b, 0, (gate.splits, -1)))
    return LoRAFactors(a=a.flatten(1), b=scale * b.flatten(0, 1))
