"""The contract's checks fail where a method breaks its promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.method import Adapter, AdapterMethod, Baseline, Budget, LoRAFactors, Trainer
from harness.testing import promises
from harness.testing.contract import Check, checks
from harness.testing.subject import Subject
from harness.testing.toys import toy_model
from methods.base import LoRAAdapter, Parts
from methods.cgc_lora import CGCLoRA
from methods.majority import Majority
from methods.moa import MoA, MoAAdapter
from methods.no_finetune import NoFinetune


class Leaky(LoRAAdapter):
    """Off leaves everything as it is."""

    def off(self) -> AbstractContextManager[None]:
        return self.route(torch.tensor([0]))


class Clinging(LoRAAdapter):
    """Detaches all layers but the first."""

    def detach(self) -> None:
        self.layers = dict(list(self.layers.items())[1:])
        super().detach()


class Forgetful(LoRAAdapter):
    """Saves the experts without the gates."""

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value for name, value in super().state_dict().items() if "gate" not in name}


class Deaf(LoRAAdapter):
    """Routes every row to the first task."""

    def route(self, labels: Tensor, examples: Tensor | None = None) -> AbstractContextManager[None]:
        return super().route(torch.zeros_like(labels), examples)


class Greedy(LoRAAdapter):
    """Folds with twice the scale."""

    def fold(self, task: str) -> Mapping[str, LoRAFactors]:
        return {name: replace(lora, b=2 * lora.b) for name, lora in super().fold(task).items()}


class Careless(LoRAAdapter):
    """Nests contexts and forgets routes."""

    def route(self, labels: Tensor, examples: Tensor | None = None) -> AbstractContextManager[None]:
        self.current_route.is_open = False
        self.current_route.labels = None
        return super().route(labels, examples)

    def off(self) -> AbstractContextManager[None]:
        self.current_route.is_open = False
        return super().off()


class Copycat(MoAAdapter):
    """Gives every prompt of a batch the first one's route."""

    def assign(self, prompts: Sequence[Tensor]) -> Sequence[int]:
        return [int(len(prompts) > 1)] * len(prompts)


@dataclass(frozen=True, kw_only=True)
class Broken(CGCLoRA):
    kind: type[LoRAAdapter] | None = None

    def adapter(self, parts: Parts) -> LoRAAdapter:
        return (self.kind or LoRAAdapter)(parts)


@dataclass(frozen=True, kw_only=True)
class Dice(CGCLoRA):
    """Starts from the global generator."""

    def attach(self, model: nn.Module, tasks: Sequence[str], *, seed: int) -> LoRAAdapter:
        return super().attach(model, tasks, seed=seed + int(torch.randint(0, 1000, ())))


@dataclass(frozen=True, kw_only=True)
class Spendthrift(CGCLoRA):
    def within(self, budget: Budget, n_tasks: int) -> Any:
        return self


@dataclass(frozen=True, kw_only=True)
class Climber(CGCLoRA):
    """Leaves its parameters worse than they were."""

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        with torch.no_grad():
            for parameter in adapter.trainable().values():
                parameter.add_(1.0)


@dataclass(frozen=True, kw_only=True)
class Invented(Majority):
    def predict(self, examples: Any, train: Any) -> list[str]:
        return ["not a training target"] * len(examples)


@dataclass(frozen=True, kw_only=True)
class Herd(MoA):
    def adapter(self, parts: Parts) -> LoRAAdapter:
        return Copycat(parts, self)


CASES: list[tuple[Any, Check]] = [
    (Broken(kind=Leaky), promises.off_is_the_base_and_detach_gives_it_back),
    (Broken(kind=Clinging), promises.off_is_the_base_and_detach_gives_it_back),
    (Broken(kind=Forgetful), promises.adapters_are_saved_and_loaded),
    (Broken(kind=Deaf), promises.labels_matter_if_and_only_if_routed),
    (Broken(kind=Greedy), promises.a_fold_is_its_route),
    (Broken(kind=Careless), promises.contexts_do_not_nest),
    (Broken(kind=Leaky), promises.fields_survive_json),
    (Dice(), promises.values_at_the_start_depend_on_the_seed_alone),
    (Spendthrift(), promises.ranks_stay_within_budgets),
    (Climber(), promises.fit_learns_the_same_twice_and_leaves_the_base_alone),
    (Invented(), promises.predictions_come_from_training_examples_alone),
    (Herd(), promises.routes_are_chosen_from_the_prompt_alone),
]


@pytest.mark.parametrize(("method", "check"), CASES, ids=lambda value: getattr(value, "__name__", type(value).__name__))
def test_a_broken_promise_is_found(method: Any, check: Check) -> None:
    with pytest.raises((AssertionError, TypeError, ValueError)):
        check(Subject(method, toy_model))


@pytest.mark.long
@pytest.mark.parametrize("check", checks(CGCLoRA), ids=lambda check: check.__name__)
def test_the_method_that_was_broken_is_whole_without_the_change(check: Callable[[Subject], None]) -> None:
    check(Subject(CGCLoRA(), toy_model))


def test_a_baseline_and_a_method_without_parameters_have_fewer_promises() -> None:
    always = {"fields_survive_json", "ablations_and_presets_name_fields"}
    names = {cls: {check.__name__ for check in checks(cls)} for cls in (Majority, NoFinetune, CGCLoRA)}
    assert names[Majority] == always | {"predictions_come_from_training_examples_alone"}
    assert "fit_learns_the_same_twice_and_leaves_the_base_alone" in names[CGCLoRA] - names[NoFinetune]
    assert names[NoFinetune] < names[CGCLoRA]


@pytest.mark.parametrize("base", [AdapterMethod, Baseline])
def test_a_method_that_lacks_what_its_base_requires_cannot_be_made(base: type[Any]) -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Incomplete", (base,), {})()
