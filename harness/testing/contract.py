"""The tests that every method has to pass, selected by its class and traits; they run for every entry point.

``pytest --harness-method my_method`` runs them for an installed method. To have them in a package's own test suite, add
one test file::

    import pytest
    from harness.testing.contract import contract

    @pytest.mark.parametrize("trial", contract("my_method"), ids=str)
    def test_contract(trial):
        trial()

``contract`` returns the checks of the method itself and of each of its ablations, on a random toy model in float64. An
adapter method that needs another model than a causal one from transformers passes ``model=``, a function that returns
equal models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from harness.method import Baseline, Method, Trait
from harness.registry import method_class
from harness.testing import promises
from harness.testing.subject import Subject
from harness.testing.toys import toy_model

Check = Callable[[Subject], None]
"""One promise: takes a fresh subject, raises AssertionError."""

_ALWAYS: Sequence[Check] = (promises.fields_survive_json, promises.ablations_and_presets_name_fields)
_ADAPTER: Sequence[Check] = (
    promises.values_at_the_start_depend_on_the_seed_alone,
    promises.off_is_the_base_and_detach_gives_it_back,
    promises.contexts_do_not_nest,
    promises.routing_tokens_equals_routing_sequences,
    promises.a_sequence_does_not_depend_on_the_others_in_its_batch,
    promises.labels_matter_if_and_only_if_routed,
)
_TRAINS: Sequence[Check] = (
    promises.a_forward_without_a_route_raises,
    promises.adapters_are_saved_and_loaded,
    promises.parts_of_a_task_get_gradients_from_its_own_sequences_alone,
    promises.checkpointed_gradients_are_gradients,
    promises.ranks_stay_within_budgets,
    promises.fit_learns_the_same_twice_and_leaves_the_base_alone,
)


def checks(method: type[Method]) -> list[Check]:
    """The checks that a method has to pass."""
    if issubclass(method, Baseline):
        return [*_ALWAYS, promises.predictions_come_from_training_examples_alone]
    chosen = [*_ALWAYS, *_ADAPTER]
    if method.trains:
        chosen += _TRAINS
    if Trait.FOLDS in method.traits:
        chosen.append(promises.a_fold_is_its_route)
    if Trait.LABEL_FREE in method.traits:
        chosen.append(promises.routes_are_chosen_from_the_prompt_alone)
    return chosen


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One check of one method (or ablation); calling it runs it."""

    name: str
    method: Method
    ablation: bool
    check: Check
    make: Callable[[], nn.Module]

    def __str__(self) -> str:
        return f"{self.name}-{self.check.__name__}"

    def __call__(self) -> None:
        self.check(Subject(self.method, self.make, self.ablation))


def contract(name: str, model: Callable[[], nn.Module] = toy_model) -> list[Trial]:
    """Every check of a registered method and of its ablations. Raises: UsageError, HarnessError as the registry."""
    cls = method_class(name)
    variants = {name: cls(), **{f"{name}+{key}": cls(**changes) for key, changes in cls.ablations.items()}}
    return [
        Trial(name=variant, method=method, ablation=variant != name, check=check, make=model)
        for variant, method in variants.items()
        for check in checks(cls)
    ]
