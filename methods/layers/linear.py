"""Adapted linear layers: a frozen base and a bank of experts, without a loop over them.

Shapes: M labels of a route, n rows of the input for each label (a row's tokens, times beams), E experts of rank r,
A (E r, d_in) and B (d_out, E r) the experts' factors side by side, g (M, E) the weights of the experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, one_hot

from harness.method import Experts, LoRAFactors
from methods.layers.fused import Folded
from methods.layers.gates import Gate
from methods.layers.routing import Route, State
from methods.layers.target import Site


def output_sum(out: Tensor, x: Tensor, a: Tensor, b: Tensor, g: Tensor, scale: float) -> Tensor:
    """``out + scale sum_k g_k B_k A_k x`` for out (M, n, d_out) and x (M, n, d_in): one LoRA of rank E r."""
    z = linear(x, a)
    weighted = torch.unflatten(z, -1, (g.shape[1], -1)) * g.to(z.dtype)[:, None, :, None]
    return _plus(out, weighted.flatten(2), b, scale)


def factor_sum(out: Tensor, x: Tensor, a: Tensor, b: Tensor, g: Tensor, scale: float) -> Tensor:
    """``out + scale (sum_k g_k B_k) (sum_k g_k A_k) x`` for out (M, n, d_out) and x (M, n, d_in)."""
    z = linear(x, a)
    g = g.to(z.dtype)[:, None, :, None]
    u = (torch.unflatten(z, -1, (g.shape[2], -1)) * g).sum(2, keepdim=True)
    return _plus(out, (g * u).flatten(2), b, scale)


def split_factor_sum(out: Tensor, x: Tensor, a: Tensor, b: Tensor, g: Tensor, splits: int, scale: float) -> Tensor:
    """``factor_sum`` with weights of their own, g (M, Q E), for each of Q parts of d_in and of d_out (MHR)."""
    g = torch.unflatten(g.to(x.dtype), 1, (splits, -1))
    experts = g.shape[2]
    a = a.reshape(experts, -1, splits, a.shape[1] // splits)
    b = b.reshape(splits, b.shape[0] // splits, experts, -1)
    z = torch.einsum("mnqd,krqd->mnqkr", torch.unflatten(x, -1, (splits, -1)), a)
    u = torch.einsum("mnqkr,mqk->mnr", z, g)
    return out + scale * torch.einsum("mqk,mnr,qokr->mnqo", g, u, b).flatten(2)


def _plus(out: Tensor, z: Tensor, b: Tensor, scale: float) -> Tensor:
    flat = torch.addmm(out.reshape(-1, out.shape[-1]), z.reshape(-1, z.shape[-1]), b.t(), alpha=scale)
    return flat.view(out.shape)


class AdaptedLinear(nn.Module):
    """A frozen linear layer (``base``) and what a method adds to it, in the state that its route says.

    Takes the base's place in the model under its name. A forward in the routed state without a route raises
    RuntimeError. Subclasses say what the routed state adds (``delta``) and how a task's share folds (``fold``).
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.base = site.linear
        self.name = site.name
        self.route: Route = site.route
        self.dropout = site.dropout
        self.folded: Folded | None = None

    def delta(self, out: Tensor, x: Tensor) -> Tensor:
        """``out`` (M, n, d_out) plus the share of each label's task in x (M, n, d_in)."""
        raise NotImplementedError

    def fold(self, task: int) -> LoRAFactors:
        """A task's share as one plain LoRA, detached. Raises: NotFoldable."""
        raise NotImplementedError

    def tensors(self) -> Mapping[str, nn.Parameter]:
        """The layer's own parameters by name; gates have names of their own."""
        raise NotImplementedError

    def bank(self) -> Experts | None:
        """The experts of which every row uses a weighed sum; None where it does not."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        state = self.route.state
        out: Tensor = self.base(x)
        if state is State.ROUTED:
            return self._routed(out, x)
        if state is State.FOLDED and self.folded is not None:
            return _plus(out, self.folded.down(x), self.folded.b, 1.0)
        return out

    def _routed(self, out: Tensor, x: Tensor) -> Tensor:
        labels = self.route.labels
        if labels is None:
            raise RuntimeError(
                f"{self.name}: forward without a route. Enter adapter.route(labels), adapter.off() or "
                "adapter.apply(factors) first, and leave it after backward"
            )
        rows = x.shape[:-1].numel()
        if rows % labels.numel():
            raise RuntimeError(f"{self.name}: a route of {labels.numel()} labels for {rows} rows of {tuple(x.shape)}")
        if self.dropout:
            x = dropout(x, self.dropout, self.training)
        per_label = (labels.numel(), rows // labels.numel(), -1)
        return self.delta(out.reshape(per_label), x.reshape(per_label)).reshape(out.shape)

    # Models ask a linear layer for these (T5 casts its input to its output layer's dtype).

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
    """One bank of E experts for all tasks, weighed by a gate.

    Args:
        factors: A (E r, d_in) and B (d_out, E r), see ``Site.experts``.
        rank: r of each expert.
        scale: s, on the whole update.
        merge: "output" sums the experts' outputs, "factor" their factors.
    """

    def __init__(
        self,
        site: Site,
        factors: tuple[nn.Parameter, nn.Parameter],
        gate: Gate,
        *,
        rank: int,
        scale: float,
        merge: str = "output",
    ) -> None:
        super().__init__(site)
        self.a, self.b = factors
        self.gate = gate
        self.rank, self.scale, self.merge = rank, scale, merge

    def tensors(self) -> Mapping[str, nn.Parameter]:
        return {"A": self.a, "B": self.b}

    def bank(self) -> Experts | None:
        if self.gate.splits > 1:
            return None
        return Experts(
            a=torch.split(self.a, self.rank),
            b=torch.split(self.b, self.rank, 1),
            weights=lambda: self.gate(self.route),
            merge=self.merge,
            scale=self.scale,
        )

    def delta(self, out: Tensor, x: Tensor) -> Tensor:
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        return mixed(out, x, a, b, self.gate(self.route), self.merge, self.gate.splits, self.scale)

    def fold(self, task: int) -> LoRAFactors:
        return folded(self.a, self.b, self.gate, task, self.merge, self.rank, self.scale)


class TaskLinear(AdaptedLinear):
    """One LoRA for all tasks, or one for each task with parameters of its own, of which a row uses its task's alone.

    Training one task's parameters touches nothing of the others. Each expert starts as the one LoRA would.

    Args:
        experts: names of the LoRAs, one per task in the tasks' order; None: one for all.
        mixture: a gate over the LoRAs; while ``mixing`` is set, rows use its mixture instead of their task's LoRA.
    """

    def __init__(
        self,
        site: Site,
        *,
        experts: Sequence[str] | None,
        rank: int,
        scale: float,
        mixture: Gate | None = None,
        merge: str = "output",
    ) -> None:
        super().__init__(site)
        pairs = [site.experts([0], rank) for _ in experts or [""]]
        self.a = nn.ParameterList(a for a, _ in pairs)
        self.b = nn.ParameterList(b for _, b in pairs)
        self.experts = experts
        self.rank, self.scale, self.merge = rank, scale, merge
        self.mixture = mixture
        self.mixing = mixture is not None

    def tensors(self) -> Mapping[str, nn.Parameter]:
        names = [""] if self.experts is None else [f".{expert}" for expert in self.experts]
        found = {f"A{name}": a for name, a in zip(names, self.a, strict=True)}
        found.update({f"B{name}": b for name, b in zip(names, self.b, strict=True)})
        return found

    @torch.no_grad()
    def put(self, i: int, lora: LoRAFactors | None) -> None:
        """Give LoRA i the factors of another one of no larger rank, filled up with zeros; None: no update at all.

        Raises ValueError for other shapes.
        """
        a, b = self.a[i].zero_(), self.b[i].zero_()
        if lora is None:
            return
        rank = lora.a.shape[0]
        if rank > self.rank or lora.a.shape[1] != a.shape[1] or lora.b.shape[0] != b.shape[0]:
            raise ValueError(
                f"{self.name}: factors a {tuple(lora.a.shape)}, b {tuple(lora.b.shape)} for a LoRA of rank {self.rank} "
                f"of a weight {tuple(self.weight.shape)}"
            )
        a[:rank] = lora.a.to(a)
        b[:, :rank] = lora.b.to(b) / self.scale

    def delta(self, out: Tensor, x: Tensor) -> Tensor:
        if self.mixing and self.mixture is not None:
            a, b = self._stacked(range(len(self.a)), x.dtype)
            return mixed(out, x, a, b, self.mixture(self.route), self.merge, 1, self.scale)
        used = (0,) if self.experts is None else self.route.present
        if len(used) == 1:
            a, b = self._stacked(used, x.dtype)
            return _plus(out, linear(x, a), b, self.scale)
        return self._tokens(out, x) if self.route.tokens else self._rows(out, x)

    def _rows(self, out: Tensor, x: Tensor) -> Tensor:
        """Each label gathers its own factors: the cost of a LoRA of rank r, whatever the number of tasks."""
        place, used = self.route.place, self.route.present
        a = torch.stack([self.a[i].to(x.dtype) for i in used])[place]
        b = torch.stack([self.b[i].to(x.dtype) for i in used])[place]
        z = torch.bmm(x, a.transpose(1, 2))
        return torch.baddbmm(out, z, b.transpose(1, 2), alpha=self.scale)

    def _tokens(self, out: Tensor, x: Tensor) -> Tensor:
        """A token is too short to gather factors for: all present tasks' LoRAs, those of other tasks weighed 0."""
        assert self.route.place is not None
        a, b = self._stacked(self.route.present, x.dtype)
        own = one_hot(self.route.place, len(self.route.present))
        return output_sum(out, x, a, b, own, self.scale)

    def _stacked(self, used: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if len(used) == 1:
            return self.a[used[0]].to(dtype), self.b[used[0]].to(dtype)
        a = torch.cat([self.a[i].to(dtype) for i in used])
        return a, torch.cat([self.b[i].to(dtype) for i in used], 1)

    def fold(self, task: int) -> LoRAFactors:
        if self.mixing and self.mixture is not None:
            a, b = self._stacked(range(len(self.a)), self.a[0].dtype)
            return folded(a, b, self.mixture, task, self.merge, self.rank, self.scale)
        own = 0 if self.experts is None else task
        return LoRAFactors(a=self.a[own].detach().clone(), b=self.scale * self.b[own].detach())


def mixed(out: Tensor, x: Tensor, a: Tensor, b: Tensor, g: Tensor, merge: str, splits: int, scale: float) -> Tensor:
    """The one of the three sums that ``merge`` and ``splits`` name."""
    if merge == "output":
        return output_sum(out, x, a, b, g, scale)
    if splits == 1:
        return factor_sum(out, x, a, b, g, scale)
    return split_factor_sum(out, x, a, b, g, splits, scale)


@torch.no_grad()
def folded(a: Tensor, b: Tensor, gate: Gate, task: int, merge: str, rank: int, scale: float) -> LoRAFactors:
    """A task's mixture as one LoRA: of rank (active experts) r for an output sum, of rank r for a factor sum."""
    a, b = torch.unflatten(a.detach(), 0, (-1, rank)), torch.unflatten(b.detach(), 1, (-1, rank))
    g = gate.table()[task]
    if merge == "output":
        chosen = torch.as_tensor(gate.active(task) or range(len(a)), device=a.device)
        weighed = b[:, chosen] * (scale * g[chosen])[:, None]
        return LoRAFactors(a=a[chosen].flatten(0, 1).clone(), b=weighed.flatten(1))
    g = torch.unflatten(g, 0, (gate.splits, -1))
    a = torch.einsum("qk,krqd->rqd", g, torch.unflatten(a, 2, (gate.splits, -1)))
    b = torch.einsum("qk,qokr->qor", g, torch.unflatten(b, 0, (gate.splits, -1)))
    return LoRAFactors(a=a.flatten(1), b=scale * b.flatten(0, 1))
