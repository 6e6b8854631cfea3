"""The base of LoRA-like methods, ours and anyone's: say what one adapted layer is, the rest is here.

@dataclass(frozen=True, kw_only=True)
class TwoExperts(LoRAMethod):
    version = 1
    traits = frozenset({Trait.ROUTED, Trait.FOLDS})
    rank: int = 8

    def layer(self, site: Site) -> AdaptedLinear:
        gate = site.shared(f"{site.name}.gate", lambda: TaskGate(FreeScores(len(site.tasks), 2), ...))
        return GatedLinear(site, site.experts(range(2), self.rank), gate, rank=self.rank, scale=self.alpha / self.rank)

    def ranks(self, n_tasks: int) -> Ranks:
        return Ranks(stored=2 * self.rank, active=2 * self.rank)
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from torch import Tensor, nn

from harness.errors import BudgetError, ModelError, UsageError, unknown
from harness.method import AdapterMethod, Budget, Trainer, iter_linear
from methods.layers.adapter import LoRAAdapter, Parts, require_bare
from methods.layers.gates import EmbeddingScores, FreeScores, Gate, TaskEmbedding, TaskGate, UniformScores
from methods.layers.linear import AdaptedLinear, GatedLinear, TaskLinear
from methods.layers.peft_io import peft_modules
from methods.layers.routing import Route
from methods.layers.target import Site, generator, number

__all__ = [
    "AdaptedLinear",
    "EmbeddingScores",
    "FreeScores",
    "Gate",
    "GatedLinear",
    "LoRAAdapter",
    "LoRAMethod",
    "Parts",
    "Route",
    "Site",
    "TaskEmbedding",
    "TaskGate",
    "TaskLinear",
    "UniformScores",
    "alone_stage",
    "gate_weights",
    "generator",
    "number",
    "one_of",
    "require_sites",
    "rounded",
    "train_alone",
]

Self = TypeVar("Self", bound="LoRAMethod")


@dataclass(frozen=True, kw_only=True)
class LoRAMethod(AdapterMethod):
    """A method that adapts linear layers.

    targets: "all" linear layers of the blocks; or names ("q_proj,v_proj": the ends of module names) or patterns
        ("model.layers.*.self_attn.*": of whole module names), parted by commas.
    alpha: the numerator of the scale s. dropout: of the input to the adapted part, one mask per layer.
    """

    rank_field: ClassVar[str] = "rank"  # the field in which stored and active rank are linear

    targets: str = "all"
    alpha: float = 32.0
    dropout: float = 0.0

    def layer(self, site: Site) -> AdaptedLinear:
        """The adapted layer that takes one linear layer's place."""
        raise NotImplementedError

    def sites(self, model: nn.Module) -> Mapping[str, nn.Linear]:
        """The linear layers to adapt, by name. Raises UsageError where ``targets`` names none."""
        return targeted(model, self.targets)

    def adapter(self, parts: Parts) -> LoRAAdapter:
        """The adapter made of all layers."""
        return LoRAAdapter(parts)

    def attach(self, model: nn.Module, tasks: Sequence[str], *, seed: int) -> LoRAAdapter:
        """Put the adapter on a frozen model. Raises UsageError where ``targets`` names no linear layer."""
        require_bare(model)
        route, modules = Route(len(tasks)), dict[str, nn.Module]()
        layers = {
            name: self.layer(
                Site(
                    name=name,
                    linear=linear,
                    tasks=tuple(tasks),
                    seed=seed,
                    dropout=self.dropout,
                    route=route,
                    modules=modules,
                )
            )
            for name, linear in self.sites(model).items()
        }
        return self.adapter(
            Parts(model=model, tasks=tuple(tasks), layers=layers, modules=modules, route=route, seed=seed)
        )

    def alone_key(self, task: str, rank: int, share: float = 1.0) -> str:
        """The ``stage_key`` of one task's LoRA by ``train_alone``: equal in every method that begins with them."""
        return f"alone {task} rank {rank} alpha {self.alpha} dropout {self.dropout} on {self.targets} share {share}"

    def rank_step(self, n_tasks: int) -> int:
        """What the rank field must be a multiple of."""
        return 1

    def within(self: Self, budget: Budget, n_tasks: int) -> Self:
        field, step = self.rank_field, self.rank_step(n_tasks)
        least = replace(self, **cast("dict[str, Any]", {field: step})).ranks(n_tasks)
        used = least.active if budget.kind == "active" else least.stored
        if used > budget.rank:
            raise BudgetError(
                f"{type(self).__name__} needs at least {budget.kind}:{used} with {n_tasks} tasks; "
                f"the budget is {budget}"
            )
        return replace(self, **cast("dict[str, Any]", {field: step * (budget.rank // used)}))


def one_of(what: str, value: str, choices: Sequence[str]) -> None:
    """Raises UsageError where a field's value is none of its choices."""
    if value not in choices:
        raise unknown(what, value, choices)


def targeted(model: nn.Module, targets: str) -> dict[str, nn.Linear]:
    """The linear layers of the model's blocks that ``targets`` names. Raises UsageError for a name without layers."""
    layers = dict(iter_linear(model))
    if not layers:
        raise UsageError(f"{type(model).__name__} has no linear layer to adapt")
    if targets == "all":
        return layers
    chosen: set[str] = set()
    for target in filter(None, (part.strip() for part in targets.split(","))):
        if any(sign in target for sign in "*?["):
            found = set(fnmatch.filter(layers, target))
        else:
            found = {name for name in layers if f".{name}".endswith(f".{target}")}
        if not found:
            raise unknown("linear layer", target, {name.rpartition(".")[2] for name in layers})
        chosen |= found
    if not chosen:
        raise UsageError(f"targets {targets!r} name no layer; use 'all' or names such as 'q_proj,v_proj'")
    return {name: linear for name, linear in layers.items() if name in chosen}


def require_sites(folder: Path, layers: Mapping[str, nn.Linear]) -> None:
    """Raises ModelError where a LoRA read from a folder adapts layers that are not among these."""
    strangers = [name for name in peft_modules(folder) if name not in layers]
    if strangers:
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        raise ModelError(
            f"{folder} adapts {', '.join(strangers[:3])}{more}, which this base model does not have or method.targets "
            "leaves out"
        )


def alone_stage(task: str, share: float = 1.0) -> str:
    """The name of the stage that trains one task's LoRA alone."""
    return task if share == 1.0 else f"alone-{task}"


def train_alone(adapter: LoRAAdapter, trainer: Trainer, tasks: Sequence[str], share: float = 1.0) -> None:
    """One stage for each task: its own LoRA on its own examples, or as another finished run has trained it.

    A task without training examples keeps its start. A stage that does not get all of the run's steps has a name and
    a result of its own.
    """
    for task in tasks:
        stage = alone_stage(task, share)
        if trainer.done(stage) or not trainer.examples(task, 1, stage):
            continue
        own = adapter.own(task)
        state = trainer.reuse(stage)
        if state is None:
            trainer.train(stage, parameters=own, tasks=[task], share=share)
        else:
            adapter.load_part(state, own)
            trainer.finish(stage)


def gate_weights(adapter: LoRAAdapter) -> dict[str, dict[str, list[float]]]:
    """For reports: each gate's weights by task, experts of all tasks first, then the task's own."""
    return {
        key: {task: weights[i] for i, task in enumerate(adapter.tasks)}
        for key, module in adapter.modules.items()
        if isinstance(module, Gate)
        for weights in [rounded(module.seen())]
    }


def rounded(values: Tensor) -> list[Any]:
    """Nested lists of JSON numbers with six digits."""
    return cast("list[Any]", values.detach().double().cpu().numpy().round(6).tolist())
