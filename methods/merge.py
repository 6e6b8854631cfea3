"""Merged LoRAs: one LoRA for all tasks, made of LoRAs that were trained alone.

Sources, in the order of ``method.how``: the mean ("Model soups", 2022, arXiv 2203.05482), the weighted sum ("Editing
Models with Task Arithmetic", 2022, arXiv 2212.04089), TIES ("TIES-Merging: Resolving Interference When Merging
Models", 2023, arXiv 2306.01708), DARE ("Language Models are Super Mario", 2023, arXiv 2311.03099).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.method import Adapter, ArtefactKind, LoRAFactors, Ranks, Trainer, Trait
from methods.base import (
    AdaptedLinear,
    LoRAAdapter,
    TargetModule,
    alone_stage,
    generator,
    require_choice,
    train_alone,
)
from methods.expert_folders import ExpertFolders
from methods.layers.linear import add_product
from methods.layers.merging import Truncated, disjoint_mean, drop, total, trim, truncate
from methods.layers.peft_io import PeftLoRA
from methods.layers.post_hoc import PostHocLinear

MERGE = "merge-loras"  # The stage that merges.


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One value of ``method.how``.

    prune: "" or what is left of each update first, "trim" or "drop".
    elects: the disjoint mean over the updates with the elected sign, instead of the sum.
    weight: the default factor on the result; None: that which makes it a mean.
    """

    prune: str
    elects: bool
    weight: float | None


RULES: Mapping[str, Rule] = {
    "uniform": Rule(prune="", elects=False, weight=None),
    "task_arithmetic": Rule(prune="", elects=False, weight=0.4),
    "ties": Rule(prune="trim", elects=True, weight=1.0),
    "dare": Rule(prune="drop", elects=False, weight=0.4),
    "dare_ties": Rule(prune="drop", elects=True, weight=1.0),
}


class MergedLinear(PostHocLinear):
    """Several LoRAs, and the merged one, which every task uses: rank r, initially zero, the scale in B."""

    def __init__(self, target: TargetModule, *, expert_names: Sequence[str], rank: int, scale: float) -> None:
        super().__init__(target, expert_names=expert_names, rank=rank, scale=scale)
        merged = target.stack([torch.zeros(rank, target.linear.in_features)])
        self.merged_a, self.merged_b = merged.a, merged.b

    def factors(self) -> Mapping[str, nn.Parameter]:
        return {**super().factors(), "merged.A": self.merged_a, "merged.B": self.merged_b}

    def together(self, out: Tensor, x: Tensor) -> Tensor:
        z = nn.functional.linear(x, self.merged_a.to(x.dtype))
        return add_product(out, z, self.merged_b.to(x.dtype), 1.0)

    def fold(self, task: int) -> LoRAFactors:
        return LoRAFactors(a=self.merged_a.detach().clone(), b=self.merged_b.detach().clone())

    @torch.no_grad()
    def write(self, lora: LoRAFactors) -> None:
        """Set the merged LoRA; a smaller rank than r is padded with zeros."""
        rank = lora.a.shape[0]
        self.merged_a.zero_()[:rank] = lora.a
        self.merged_b.zero_()[:, :rank] = lora.b


@dataclass(frozen=True, kw_only=True)
class Merge(ExpertFolders):
    """h = W0 x + delta W x, one update for all tasks, merged from the updates s B_k A_k of ``lora_single``.

    rank: of each LoRA, and of the merged one, which has the largest rank of the LoRAs that are read from folders.
    how: "uniform", the mean; "task_arithmetic", weight times the sum; "ties", which trims each update to its largest
        entries, elects the sign of each entry and takes the mean over the updates with this sign; "dare", which drops
        entries at random, rescales the others, and takes weight times the sum; "dare_ties", which drops as "dare" and
        elects as "ties".
    on: "update" merges the products s B_k A_k and keeps the nearest matrix of rank r, as PEFT's combinations with an
        SVD; "factor" merges all A_k, and apart from them all B_k, each with sqrt(s weight), as PEFT's others. The
        product of two sums has cross terms; of two means, which "uniform" takes, it is s mean(B_k) mean(A_k).
    weight: the factor on the result; None: 0.4 for a weighted sum, 1 with elected signs. "uniform" has no weight.
    density: the share of the entries that "ties" keeps, and "dare" on average, in each linear layer. (The authors of
        TIES count over the whole model, and PEFT in each layer.)

    LoRAs of tasks without training examples are not merged. What "dare" drops depends on the run's seed, the layer and
    the task, or the position of the folder.
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.FOLDS})
    summary: ClassVar[str] = "one LoRA for all tasks, merged from LoRAs trained alone"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "task_arithmetic": {"how": "task_arithmetic"},
        "ties": {"how": "ties"},
        "dare": {"how": "dare"},
        "dare_ties": {"how": "dare_ties"},
        "factor": {"on": "factor"},
    }

    how: str = "uniform"
    on: str = "update"
    weight: float | None = None
    density: float = 0.2

    def __post_init__(self) -> None:
        require_choice("method.how", self.how, list(RULES))
        require_choice("method.on", self.on, ["update", "factor"])
        if self.weight is not None and self.how == "uniform":
            raise UsageError(
                f"method.weight={self.weight}: the mean of method.how=uniform has no weight; use task_arithmetic"
            )
        if self.weight is not None and not self.weight > 0:
            raise UsageError(f"method.weight={self.weight} must be above 0, or none for the default of method.how")
        if not 0 < self.density <= 1:
            raise UsageError(f"method.density={self.density} is not a share of the entries: use more than 0, up to 1")

    def layer(self, target: TargetModule) -> AdaptedLinear:
        names = self.expert_names(target.tasks)
        return MergedLinear(target, expert_names=names, rank=self.expert_rank(), scale=self.expert_scale())

    def check_experts(self, loras: Sequence[PeftLoRA]) -> None:
        """Sums of factors need one rank: with zeros in the place of what is missing, a sum would pair unlike rows."""
        ranks: dict[str, tuple[int, PeftLoRA]] = {}
        for lora in loras if self.on == "factor" else ():
            for name, factors in lora.factors.items():
                rank, first = ranks.setdefault(name, (factors.a.shape[0], lora))
                if factors.a.shape[0] != rank:
                    raise UsageError(
                        f"method.on=factor needs LoRAs of one rank: for {name} {first.folder} has {rank}, and "
                        f"{lora.folder} has {factors.a.shape[0]}. Use method.on=update"
                    )

    def ranks(self, n_tasks: int) -> Ranks:
        """The merged LoRA is stored besides those that it was made of."""
        rank = self.expert_rank()
        return Ranks(stored=((len(self.experts) or n_tasks) + 1) * rank, active=rank)

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """Train each LoRA alone, or reuse it, unless they are read from folders; then merge them."""
        own = cast("LoRAAdapter", adapter)
        if self.experts:
            trainer.artefact("experts", list(self.experts), ArtefactKind.OTHER)
            trained = list(range(len(self.experts)))
        else:
            with own.without_mixture():
                train_alone(own, trainer, tasks)
            trained = [i for i, task in enumerate(tasks) if trainer.examples(task, 1, alone_stage(task))]
        if trainer.done(MERGE):
            return
        kept: dict[str, float] = {}
        for name, layer in own.layers.items():
            if trained and isinstance(layer, MergedLinear):
                merged = self.merged(layer, trained, trainer.seed)
                layer.write(merged.lora)
                kept[name] = round(merged.kept, 6)
        # For each layer, the share of the merged update (of its squared entries) that a LoRA of rank r can hold.
        trainer.artefact("kept", kept, ArtefactKind.OTHER)
        trainer.finish(MERGE)

    @torch.no_grad()
    def merged(self, layer: MergedLinear, trained: Sequence[int], seed: int) -> Truncated:
        """The merged LoRA of one layer, from the LoRAs ``trained`` (their indices)."""
        rule = RULES[self.how]
        # A mean of each factor divides the product of the two by the number of LoRAs twice.
        mean = len(trained) ** (-1 if self.on == "update" else -2)
        weight = self.weight or rule.weight or mean
        names = layer.expert_names or ()

        def combine(kind: str, tensor: Callable[[int], Tensor]) -> Tensor:
            def pruned(i: int) -> Tensor:
                of = trained[i]
                return self._pruned(tensor(of), rule, partial(generator, seed, "dare", layer.name, kind, names[of]))

            return (disjoint_mean if rule.elects else total)(pruned, len(trained))

        if self.on == "update":
            update = combine("update", lambda i: layer.scale * layer.b[i] @ layer.a[i])
            return truncate(weight * update, layer.rank)
        root = (weight * layer.scale) ** 0.5
        a, b = (combine(kind, factors.__getitem__) for kind, factors in (("A", layer.a), ("B", layer.b)))
        return Truncated(lora=LoRAFactors(a=root * a, b=root * b), kept=1.0)

    def _pruned(self, update: Tensor, rule: Rule, draw: Callable[[], torch.Generator]) -> Tensor:
        if rule.prune == "trim":
            return trim(update, self.density)
        return drop(update, self.density, draw()) if rule.prune == "drop" else update
