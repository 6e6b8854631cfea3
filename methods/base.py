"""The base class of LoRA-like methods, also for packages outside this project.

A subclass defines one adapted layer; attaching, folding, saving and budgets are defined here::

    @dataclass(frozen=True, kw_only=True)
    class TwoExperts(LoRAMethod):
        version = 1
        summary = "two experts behind a gate on the task"
        traits = frozenset({Trait.ROUTED, Trait.FOLDS})
        rank: int = 8

        def layer(self, target: TargetModule) -> AdaptedLinear:
            n = len(target.tasks)
            gate = target.shared(f"{target.name}.gate", lambda: TaskGate(FreeScores(n, 2), n, 2, 0))
            factors = target.experts(range(2), self.rank)
            return GatedLinear(target, factors, gate, rank=self.rank, scale=self.alpha / self.rank)

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
from harness.linear_layers import linear_layers
from harness.method import AdapterMethod, Budget, Trainer, iter_linear
from methods.layers.adapter import LoRAAdapter, Parts, require_bare
from methods.layers.gates import EmbeddingScores, FreeScores, Gate, TaskEmbedding, TaskGate, UniformScores
from methods.layers.linear import AdaptedLinear, GatedLinear
from methods.layers.peft_io import peft_modules
from methods.layers.routing import Route
from methods.layers.target import ExpertFactors, TargetModule, block_of, generator, method_seed
from methods.layers.task_linear import TaskLinear

__all__ = [
    "AdaptedLinear",
    "EmbeddingScores",
    "ExpertFactors",
    "FreeScores",
    "Gate",
    "GatedLinear",
    "LoRAAdapter",
    "LoRAMethod",
    "Parts",
    "Route",
    "TargetModule",
    "TaskEmbedding",
    "TaskGate",
    "TaskLinear",
    "UniformScores",
    "alone_stage",
    "gate_weights",
    "generator",
    "linear_siblings",
    "method_seed",
    "require_choice",
    "require_positive",
    "require_target_layers",
    "to_json_numbers",
    "train_alone",
]

Self = TypeVar("Self", bound="LoRAMethod")


@dataclass(frozen=True, kw_only=True)
class LoRAMethod(AdapterMethod):
    """A method that adapts linear layers.

    targets: "all" linear layers of the blocks; or a comma-separated list of names ("q_proj,v_proj", the ends of module
        names) or patterns ("model.layers.*.self_attn.*", for whole module names).
    alpha: the numerator of the scale s. dropout: on the input of the adapted part, one mask for each layer.
    """

    rank_field: ClassVar[str] = "rank"  # Stored and active rank grow with this field, by 1 or more for each 1.

    targets: str = "all"
    alpha: float = 32.0
    dropout: float = 0.0

    def layer(self, target: TargetModule) -> AdaptedLinear:
        """The adapted layer that replaces one linear layer."""
        raise NotImplementedError

    def target_layers(self, model: nn.Module) -> Mapping[str, nn.Linear]:
        """The linear layers to adapt, by name. Raises: UsageError if ``targets`` matches none."""
        return select_layers(model, self.targets)

    def adapter(self, parts: Parts) -> LoRAAdapter:
        """The adapter that consists of these parts."""
        return LoRAAdapter(parts)

    def attach(self, model: nn.Module, tasks: Sequence[str], *, seed: int) -> LoRAAdapter:
        """Put the adapter on a frozen model. Raises: UsageError if ``targets`` matches no linear layer."""
        require_bare(model)
        route, modules = Route(len(tasks)), dict[str, nn.Module]()
        blocks = tuple(dict.fromkeys(filter(None, (block_of(name) for name, _ in iter_linear(model)))))
        siblings = linear_siblings(model)
        layers = {
            name: self.layer(
                TargetModule(
                    name=name,
                    linear=linear,
                    tasks=tuple(tasks),
                    seed=seed,
                    dropout=self.dropout,
                    route=route,
                    modules=modules,
                    blocks=blocks,
                    siblings=siblings[name.rpartition(".")[0]],
                )
            )
            for name, linear in self.target_layers(model).items()
        }
        return self.adapter(
            Parts(model=model, tasks=tuple(tasks), layers=layers, modules=modules, route=route, seed=seed)
        )

    def alone_key(self, task: str, rank: int, share: float = 1.0) -> str:
        """The ``stage_key`` of one task's LoRA in ``train_alone``: equal in every method that starts with these."""
        return f"alone {task} rank {rank} alpha {self.alpha} dropout {self.dropout} on {self.targets} share {share}"

    def rank_step(self, n_tasks: int) -> int:
        """The smallest value of the rank field, of which all others are multiples."""
        return 1

    def within(self: Self, budget: Budget, n_tasks: int) -> Self:
        field, step = self.rank_field, self.rank_step(n_tasks)
        used = self._used(budget, step, n_tasks)
        if used > budget.rank:
            raise BudgetError(
                f"{type(self).__name__} needs at least {budget.kind}:{used} with {n_tasks} tasks, and the budget is "
                f"{budget}: use --budget {budget.kind}:{used} or more"
            )
        value = step
        while self._used(budget, value + step, n_tasks) <= budget.rank:
            value += step
        return replace(self, **cast("dict[str, Any]", {field: value}))

    def _used(self, budget: Budget, value: int, n_tasks: int) -> int:
        """The rank that the budget limits, if the rank field has this value."""
        ranks = replace(self, **cast("dict[str, Any]", {self.rank_field: value})).ranks(n_tasks)
        return ranks.active if budget.kind == "active" else ranks.stored


def linear_siblings(model: nn.Module) -> dict[str, dict[str, nn.Linear]]:
    """The linear layers of the model's blocks by the name of their parent module, then by their own."""
    found: dict[str, dict[str, nn.Linear]] = {}
    for name, linear in iter_linear(model):
        found.setdefault(name.rpartition(".")[0], {})[name] = linear
    return found


def require_choice(what: str, value: str, choices: Sequence[str]) -> None:
    """Raises UsageError if a field's value is not one of its choices."""
    if value not in choices:
        raise unknown(what, value, choices)


def require_positive(**fields: int) -> None:
    """Raises UsageError if one of a method's fields, given by name, is below 1."""
    for name, value in fields.items():
        if value < 1:
            raise UsageError(f"method.{name}={value}: use 1 or more")


def select_layers(model: nn.Module, targets: str) -> dict[str, nn.Linear]:
    """The linear layers of the model's blocks that ``targets`` matches. Raises: UsageError for a name without any."""
    layers = dict(iter_linear(model))
    if not layers:
        others = linear_layers(model).describe()
        raise UsageError(
            f"{type(model).__name__} has no linear layers to adapt{f' ({others})' if others else ''}: give another "
            "--model, whose weights are nn.Linear layers"
        )
    if targets == "all":
        return layers
    chosen: set[str] = set()
    for target in filter(None, (part.strip() for part in targets.split(","))):
        pattern = any(sign in target for sign in "*?[")
        if pattern:
            matches = set(fnmatch.filter(layers, target))
        else:
            matches = {name for name in layers if f".{name}".endswith(f".{target}")}
        if not matches and pattern:
            raise UsageError(
                f"method.targets: no linear layer matches the pattern {target!r}, in which * is any text, ? one "
                "character and [1-4] one of these; separate several patterns by commas. A full name: "
                f"{next(iter(layers))}"
            )
        if not matches:
            raise unknown("linear layer", target, {name.rpartition(".")[2] for name in layers})
        chosen |= matches
    if not chosen:
        raise UsageError(f"method.targets={targets!r} names no layer: use 'all' or names such as 'q_proj,v_proj'")
    return {name: linear for name, linear in layers.items() if name in chosen}


def require_target_layers(folder: Path, layers: Mapping[str, nn.Linear]) -> None:
    """Raises ModelError if a LoRA that was read from a folder adapts layers that are not among these."""
    missing = [name for name in peft_modules(folder) if name not in layers]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(
            f"{folder} adapts {', '.join(missing[:3])}{more}, which this base model does not have or method.targets "
            "leaves out: use the base model of the LoRA, or method.targets=all"
        )


def alone_stage(task: str, share: float = 1.0) -> str:
    """The name of the stage that trains only one task's LoRA."""
    return task if share == 1.0 else f"alone-{task}"


def train_alone(adapter: LoRAAdapter, trainer: Trainer, tasks: Sequence[str], share: float = 1.0) -> None:
    """One stage for each task: train its LoRA on its own examples, or reuse it from a finished run.

    The LoRA of a task without training examples keeps its initial values. A stage with a share of the run's steps has
    another name and another result than a stage with all of them.
    """
    for task in tasks:
        stage = alone_stage(task, share)
        if trainer.done(stage) or not trainer.examples(task, 1, stage):
            continue
        own = adapter.task_parameters(task)
        state = trainer.reuse(stage)
        if state is None:
            trainer.train(stage, parameters=own, tasks=[task], share=share)
        else:
            adapter.load_partial(state, own)
            trainer.finish(stage)


def gate_weights(adapter: LoRAAdapter) -> dict[str, dict[str, list[float]]]:
    """For reports, the weights of each gate by task: shared experts first, then the task's own."""
    return {
        key: {task: weights[i] for i, task in enumerate(adapter.tasks)}
        for key, module in adapter.modules.items()
        if isinstance(module, Gate)
        for weights in [to_json_numbers(module.visible_weights())]
    }


def to_json_numbers(values: Tensor) -> list[Any]:
    """Nested lists of JSON numbers with six digits."""
    return cast("list[Any]", values.detach().double().cpu().numpy().round(6).tolist())
