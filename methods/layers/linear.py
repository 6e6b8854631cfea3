"""Expert layers: a frozen linear layer and E low-rank experts, computed without a loop over the experts.

Shapes: M labels of a route, n input vectors for each label (the tokens of a sequence, times beams), V = M n, E experts
of rank r, A (E r, d_in) and B (d_out, E r) the stacked factors of the experts, g (M, E) the weights of the experts, or
(M, n, E) where each vector has its own.

The output of a base layer is a matrix (V, d_out), to which the update is added in place: neither the layer nor its
backward pass needs the output before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from harness.method import Experts, LoRAFactors, TaskParts
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
        self.prepared: Prepared | None = None

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

    def delta(self, out: Tensor, x: Tensor) -> Tensor:
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        return weighted_sum(out, x, a, b, self.gate(self.route), self.merge, self.gate.splits, self.scale)

    def fold(self, task: int) -> LoRAFactors:
        return fold_experts(self.a, self.b, self.gate, task, self.merge, self.rank, self.scale)


class TaskLinear(AdaptedLinear):
    """One LoRA for all tasks, or one for each task with its own parameters; a sequence uses the LoRA of its task.

    Training one task's parameters changes nothing of the others. All LoRAs have the same initial values.

    Args:
        expert_names: one for each LoRA, in the order of the tasks; None: one LoRA for all tasks.
        mixture: a gate over the LoRAs; while ``use_mixture`` is set, a sequence uses the weighted sum of the LoRAs.
    """

    def __init__(
        self,
        target: TargetModule,
        *,
        expert_names: Sequence[str] | None,
        rank: int,
        scale: float,
        mixture: Gate | None = None,
        merge: str = "output",
    ) -> None:
        super().__init__(target)
        loras = [target.experts([0], rank) for _ in expert_names or [""]]
        self.a = nn.ParameterList(lora.a for lora in loras)
        self.b = nn.ParameterList(lora.b for lora in loras)
        self.expert_names = expert_names
        self.rank, self.scale, self.merge = rank, scale, merge
        self.mixture = mixture
        self.use_mixture = mixture is not None

    def factors(self) -> Mapping[str, nn.Parameter]:
        names = [""] if self.expert_names is None else [f".{expert}" for expert in self.expert_names]
        factors = {f"A{name}": a for name, a in zip(names, self.a, strict=True)}
        return factors | {f"B{name}": b for name, b in zip(names, self.b, strict=True)}

    def task_parts(self) -> Mapping[str, TaskParts]:
        if self.expert_names is None or self.mixture is not None:
            return {}
        parts = [TaskParts(dim=0, tasks=(task,) * self.rank) for task in range(len(self.expert_names))]
        parts += [TaskParts(dim=1, tasks=(task,) * self.rank) for task in range(len(self.expert_names))]
        return dict(zip(self.factors(), parts, strict=True))

    @torch.no_grad()
    def load_expert(self, index: int, lora: LoRAFactors | None) -> None:
        """Copy a LoRA of the same or a smaller rank, padded with zeros, into one of this layer's; None: all zeros.

        Raises: ValueError for other shapes.
        """
        a, b = self.a[index].zero_(), self.b[index].zero_()
        if lora is None:
            return
        rank = lora.a.shape[0]
        if rank > self.rank or lora.a.shape[1] != a.shape[1] or lora.b.shape[0] != b.shape[0]:
            raise ValueError(
                f"{self.name}: factors a {tuple(lora.a.shape)}, b {tuple(lora.b.shape)} do not fit a LoRA of rank "
                f"{self.rank} for a weight {(self.out_features, self.in_features)}"
            )
        a[:rank] = lora.a.to(a)
        b[:, :rank] = lora.b.to(b) / self.scale

    def gates(self) -> Sequence[Gate]:
        return (self.mixture,) if self.use_mixture and self.mixture is not None else ()

    def delta(self, out: Tensor, x: Tensor) -> Tensor:
        if self.use_mixture and self.mixture is not None:
            a, b = self._stacked(range(len(self.a)), x.dtype)
            return weighted_sum(out, x, a, b, self.mixture(self.route), self.merge, 1, self.scale)
        used = (0,) if self.expert_names is None else self.route.present
        if len(used) == 1:
            a, b = self._stacked(used, x.dtype)
            return add_product(out, linear(x, a), b, self.scale)
        return self._by_token(out, x) if self.route.tokens else self._by_sequence(out, x)

    def _by_sequence(self, out: Tensor, x: Tensor) -> Tensor:
        """Each sequence gathers its own factors: the cost of a LoRA of rank r, whatever the number of tasks."""
        position, used = self.route.position, self.route.present
        a = torch.stack([self.a[i].to(x.dtype) for i in used])[position]
        b = torch.stack([self.b[i].to(x.dtype) for i in used])[position]
        z = torch.bmm(x, a.transpose(1, 2))
        added = torch.baddbmm(out.view(*x.shape[:2], -1), z, b.transpose(1, 2), alpha=self.scale)
        return added.view(out.shape)

    def _by_token(self, out: Tensor, x: Tensor) -> Tensor:
        """All present tasks' LoRAs, weighted 0 for tokens of other tasks: gathering factors per token costs more."""
        a, b = self._stacked(self.route.present, x.dtype)
        return output_sum(out, x, a, b, self.route.own_of_present(x.dtype), self.scale)

    def _stacked(self, used: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if len(used) == 1:
            return self.a[used[0]].to(dtype), self.b[used[0]].to(dtype)
        # One cast of all of them starts fewer kernels than one for each.
        return torch.cat([self.a[i] for i in used]).to(dtype), torch.cat([self.b[i] for i in used], 1).to(dtype)

    def fold(self, task: int) -> LoRAFactors:
        if self.use_mixture and self.mixture is not None:
            a, b = self._stacked(range(len(self.a)), self.a[0].dtype)
            return fold_experts(a, b, self.mixture, task, self.merge, self.rank, self.scale)
        own = 0 if self.expert_names is None else task
        return LoRAFactors(a=self.a[own].detach().clone(), b=self.scale * self.b[own].detach())


def weighted_sum(
    out: Tensor, x: Tensor, a: Tensor, b: Tensor, g: Tensor, merge: str, splits: int, scale: float
) -> Tensor:
    """The sum over experts that ``merge`` and ``splits`` select."""
    if merge == "output":
        return output_sum(out, x, a, b, g, scale)
    if splits == 1:
        return factor_sum(out, x, a, b, g, scale)
    return split_factor_sum(out, x, a, b, g, splits, scale)


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
