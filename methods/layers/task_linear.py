"""A layer with a LoRA for each task, of which a sequence or a token uses that of its task.

Shapes: M labels of a route, n input vectors for each label, P tasks among the labels, LoRAs of rank r with A (r, d_in)
and B (d_out, r).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness.method import LoRAFactors, TaskParts
from methods.layers.casting import cast_experts, cast_one, padded_experts, rank_multiple
from methods.layers.gates import Gate
from methods.layers.linear import AdaptedLinear, add_product, fold_experts, output_sum, weighted_sum
from methods.layers.prepared import Prepared
from methods.layers.target import TargetModule


@dataclass(frozen=True, kw_only=True, eq=False)
class PresentLoRAs:
    """The LoRAs of the tasks that are present in a route.

    a, b: of the only one, (r, d_in) and (d_out, r), not cast yet; of several for tokens, (P r, d_in) and (d_out, P r);
        for sequences, (P, r, d_in) and (P, d_out, r).
    own: for tokens of several tasks (M, P), 1 for the task of each; otherwise None. P may be padded, see ``casting``.
    """

    a: Tensor
    b: Tensor
    own: Tensor | None = None


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

    @classmethod
    def prepare(cls, layers: Sequence[TaskLinear], dtype: torch.dtype) -> None:
        """Choose the LoRAs of the present tasks, so that a compiled layer has no task as a constant of its graph."""
        for layer in layers:
            if layer.expert_names is not None and not layer.use_mixture:
                layer.prepared = Prepared(layer.present_loras(dtype), 1, layer._stacked_parameters)

    def delta(self, out: Tensor, x: Tensor) -> Tensor:
        if self.use_mixture and self.mixture is not None:
            a, b = self._stacked(range(len(self.a)))
            cast = cast_experts(a, b, self.rank, x, self.route)
            return weighted_sum(out, x, cast, self.mixture(self.route), self.merge, self.scale)
        if self.expert_names is None:
            return self._plain(out, x, self.a[0], self.b[0])
        chosen = self._chosen(x.dtype)
        if chosen.own is not None:
            return output_sum(out, x, chosen.a.to(x.dtype), chosen.b.to(x.dtype), chosen.own, self.scale)
        if chosen.a.dim() == 3:
            return self._by_sequence(out, x, chosen.a.to(x.dtype), chosen.b.to(x.dtype))
        return self._plain(out, x, chosen.a, chosen.b)

    def present_loras(self, dtype: torch.dtype) -> PresentLoRAs:
        """The LoRAs of the tasks that are present in the route; several in the dtype of the hidden states."""
        used, route = self.route.present, self.route
        if len(used) == 1:
            return PresentLoRAs(a=self.a[used[0]], b=self.b[used[0]])
        # One cast of all of them starts fewer kernels than one for each.
        if not route.tokens:
            a, b = (torch.stack([factors[i] for i in used]) for factors in (self.a, self.b))
            return PresentLoRAs(a=a.to(dtype), b=b.to(dtype))
        columns = padded_experts(len(used), self.rank, rank_multiple(route, self.a[0].device, dtype))
        a, b = self._stacked(used, (columns - len(used)) * self.rank)
        return PresentLoRAs(a=a.to(dtype), b=b.to(dtype), own=route.own_of_present(dtype, columns))

    def _chosen(self, dtype: torch.dtype) -> PresentLoRAs:
        # A nested route has other labels than the one that the LoRAs were chosen for.
        prepared: Prepared[PresentLoRAs] | None = None if self.route.is_nested else self.prepared
        chosen = None if prepared is None else prepared.take()
        return self.present_loras(dtype) if chosen is None else chosen

    def _plain(self, out: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        cast = cast_one(a, b, x, self.route)
        return add_product(out, linear(x, cast.a), cast.b, self.scale)

    def _by_sequence(self, out: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Each sequence gathers its own factors: the cost of a LoRA of rank r, whatever the number of tasks."""
        position = self.route.position
        z = torch.bmm(x, a[position].transpose(1, 2))
        added = torch.baddbmm(out.view(*x.shape[:2], -1), z, b[position].transpose(1, 2), alpha=self.scale)
        return added.view(out.shape)

    def _stacked(self, used: Sequence[int], more: int = 0) -> tuple[Tensor, Tensor]:
        """The factors of some LoRAs, (P r, d_in) and (d_out, P r), and ``more`` rows and columns of zeros."""
        a, b = [self.a[i] for i in used], [self.b[i] for i in used]
        if more:
            a += [self.route.zeros(a[0], more, a[0].shape[1])]
            b += [self.route.zeros(b[0], b[0].shape[0], more)]
        return torch.cat(a), torch.cat(b, 1)

    def _stacked_parameters(self) -> list[Tensor]:
        """The parameters that ``present_loras`` has copied."""
        used = self.route.present
        return [factors[i] for i in used for factors in (self.a, self.b)] if len(used) > 1 else []

    def fold(self, task: int) -> LoRAFactors:
        if self.use_mixture and self.mixture is not None:
            a, b = self._stacked(range(len(self.a)))
            return fold_experts(a, b, self.mixture, task, self.merge, self.rank, self.scale)
        own = 0 if self.expert_names is None else task
        return LoRAFactors(a=self.a[own].detach().clone(), b=self.scale * self.b[own].detach())
