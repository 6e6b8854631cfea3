"""The tests that every method has to pass, chosen by its traits; they run by themselves for every entry point.

For a method of your own package, add one test file to it::

    import pytest
    from harness.contract import contract

    @pytest.mark.parametrize("check", contract("my_method"), ids=str)
    def test_contract(check):
        check()

``contract`` gives the checks of the method itself and of each of its ablations, on a random toy model in float64; an
AssertionError says what was promised and what was found. Methods that need another kind of model than a causal one
from transformers pass ``model=``, a function that makes equal models.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import BudgetError, NotFoldable
from harness.method import Adapter, Budget, Method, Trait
from harness.registry import method_class
from harness.testing.toys import TASKS, VOCABULARY, ToyTrainer, perturb, toy_data, toy_model

CLOSE = 1e-6  # the toy's norms compute in float32, whatever the dtype of its weights


class Subject:
    """A method on trial, on a model of its own. An ablation may lose what its method's traits promise."""

    def __init__(self, method: Method, make: Callable[[], nn.Module], ablation: bool = False) -> None:
        self.method, self.make, self.ablation = method, make, ablation
        self.model: Any = make()
        self.tasks = list(TASKS)
        state = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(0, VOCABULARY, (4, 5), generator=state)
        self.labels = torch.tensor([2, 0, 1, 0])

    def attach(self, seed: int = 0, noise: bool = True) -> Adapter:
        """The adapter, with noise on its parameters."""
        adapter = self.method.attach(self.model, self.tasks, seed=seed)
        if noise:
            perturb(adapter)
        return adapter

    def has(self, trait: Trait) -> bool:
        return trait in self.method.traits

    @contextmanager
    def routed(self, adapter: Adapter, labels: Tensor, tokens: Tensor) -> Iterator[None]:
        """Inside a route, with prompts read where the method reads them."""
        with adapter.route(labels):
            if self.has(Trait.LABEL_FREE):
                owner = torch.arange(len(labels))
                prompts = list(tokens[:: len(tokens) // len(labels)])
                adapter.read(prompts, owner if labels.dim() == 1 else owner[:, None].expand(labels.shape))
            yield

    def logits(self, tokens: Tensor | None = None) -> Tensor:
        found: Tensor = self.model(input_ids=self.tokens if tokens is None else tokens, use_cache=False).logits
        return found.detach()

    def route(self, adapter: Adapter, labels: Tensor, tokens: Tensor) -> Tensor:
        with self.routed(adapter, labels, tokens):
            return self.logits(tokens)


Check = Callable[[Subject], None]
"""One promise: takes a fresh subject, raises AssertionError."""


def promise(kept: bool, words: str) -> None:
    """Raises AssertionError with these words, whether or not Python optimises assert statements away."""
    if not kept:
        raise AssertionError(words)


def raises(kind: type[Exception], act: Callable[[], object]) -> bool:
    """Whether an act raises an error of that kind."""
    try:
        act()
    except kind:
        return True
    return False


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference of any two entries."""
    return float((one - other).abs().max())


def fields_survive_json(s: Subject) -> None:
    values = dataclasses.asdict(s.method)
    loaded = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(json.dumps(values)).items()}
    promise(type(s.method)(**loaded) == s.method, f"fields change on their way through JSON: {values} to {loaded}")


def ablations_and_presets_name_fields(s: Subject) -> None:
    cls = type(s.method)
    known = {field.name for field in dataclasses.fields(cls)}
    for name, changes in cls.ablations.items():
        promise(bool(changes) and set(changes) <= known, f"ablation {name} changes {sorted(changes)}, not {known}")
        promise(cls(**changes) != cls(), f"ablation {name} is the method itself")
    for name, keys in cls.presets.items():
        mine = {key.removeprefix("method.") for key in keys if key.startswith("method.")}
        promise(mine <= known, f"preset {name} sets unknown fields {sorted(mine - known)}")
        promise(all("." in key for key in keys), f"preset {name} has keys that are not section.key")
    promise(isinstance(cls.version, int) and cls.version > 0, f"version {cls.version!r} is no positive integer")
    promise(bool(cls.summary) and "\n" not in cls.summary, "summary is not one line")


def answers_come_from_training_examples_alone(s: Subject) -> None:
    train = toy_data()[TASKS[0]]
    blank = [dataclasses.replace(example, target="") for example in train]
    answers = s.method.answer(TASKS[0], blank, train)
    promise(len(answers) == len(blank), f"{len(answers)} answers for {len(blank)} prompts")
    promise(set(answers) <= {e.target for e in train}, f"answers that nobody gave: {answers}")
    promise(list(answers) == list(s.method.answer(TASKS[0], blank, train)), "a second call answers otherwise")
    promise(list(s.method.answer(TASKS[0], blank, [])) == [""] * len(blank), "an answer without examples is not ''")


def values_at_the_start_depend_on_the_seed_alone(s: Subject) -> None:
    before = torch.get_rng_state()
    adapter = s.attach(seed=3, noise=False)
    promise(torch.equal(before, torch.get_rng_state()), "attach draws from torch's global generator")
    first = adapter.state_dict()
    adapter.detach()
    torch.manual_seed(11)
    again, other = s.attach(seed=3, noise=False).state_dict(), Subject(s.method, s.make).attach(seed=4, noise=False)
    promise(first.keys() == again.keys(), "attaching twice gives other names")
    promise(all(torch.equal(first[n], again[n]) for n in first), "attaching twice gives other values")
    if s.has(Trait.TRAINS):
        changed = any(not torch.equal(first[n], v) for n, v in other.state_dict().items())
        promise(changed, "another seed gives the same values")


def off_is_the_base_and_detach_gives_it_back(s: Subject) -> None:
    base, modules = s.logits(), {name: type(module) for name, module in s.model.named_modules()}
    adapter = s.attach()
    with adapter.off():
        promise(torch.equal(s.logits(), base), "off is not the base model's output, bit for bit")
    adapter.detach()
    promise({n: type(m) for n, m in s.model.named_modules()} == modules, "detach leaves other modules behind")
    promise(torch.equal(s.logits(), base), "after detach the model answers otherwise")


def a_forward_without_a_route_raises(s: Subject) -> None:
    adapter = s.attach()
    promise(raises(RuntimeError, s.logits), "a forward outside of every context gives a result")
    s.route(adapter, s.labels, s.tokens)
    promise(raises(RuntimeError, s.logits), "a route is still set after its context")


def contexts_do_not_nest(s: Subject) -> None:
    adapter = s.attach()

    def enter(context: AbstractContextManager[None]) -> None:
        with context:
            pass

    for name in ("off", "route", "apply"):
        with adapter.route(s.labels):
            inner: dict[str, Callable[[], None]] = {
                "off": lambda: enter(adapter.off()),
                "route": lambda: enter(adapter.route(s.labels)),
                "apply": lambda: enter(adapter.apply({}, merge=False)),
            }
            promise(raises(RuntimeError, inner[name]), f"{name} opens inside of a route")


def adapters_are_saved_and_loaded(s: Subject) -> None:
    adapter = s.attach()
    state, other = adapter.state_dict(), Subject(s.method, s.make)
    loaded = other.attach(seed=9, noise=False)
    loaded.load_state_dict(state)
    mine, theirs = s.route(adapter, s.labels, s.tokens), other.route(loaded, s.labels, s.tokens)
    promise(torch.equal(mine, theirs), "a loaded adapter answers otherwise")
    promise(set(adapter.trainable()) <= set(state), "state_dict lacks trainable parameters")
    name = next(iter(state))
    lacking = {n: v for n, v in state.items() if n != name}
    for wrong in (lacking, {**state, "stranger": state[name]}, {**state, name: state[name][None]}):
        promise(raises(ValueError, partial(loaded.load_state_dict, wrong)), "a state that does not fit is loaded")


def tokens_routed_are_rows_routed(s: Subject) -> None:
    adapter = s.attach()
    rows = s.route(adapter, s.labels, s.tokens)
    tokens = s.route(adapter, s.labels[:, None].expand(s.tokens.shape), s.tokens)
    promise(distance(rows, tokens) < CLOSE, f"tokens routed differ from rows routed by {distance(rows, tokens)}")


def mixed_rows_are_single_rows(s: Subject) -> None:
    adapter = s.attach()
    mixed = s.route(adapter, s.labels, s.tokens)
    alone = [s.route(adapter, s.labels[i : i + 1], s.tokens[i : i + 1]) for i in range(4)]
    promise(distance(mixed, torch.cat(alone)) < CLOSE, "a row's output depends on the other rows' tasks")
    beams = s.route(adapter, s.labels, s.tokens.repeat_interleave(2, 0))
    promise(distance(beams, mixed.repeat_interleave(2, 0)) < CLOSE, "rows repeated by beams lose their route")


def labels_matter_if_and_only_if_routed(s: Subject) -> None:
    adapter = s.attach()
    one, other = (s.route(adapter, labels, s.tokens) for labels in (s.labels, (s.labels + 1) % 3))
    soft = s.has(Trait.LABEL_FREE) and adapter.assign(list(s.tokens)) is None
    if s.has(Trait.ROUTED) and not soft:
        promise(s.ablation or distance(one, other) > CLOSE, "routed, but every task gets the same output")
    else:
        promise(distance(one, other) < CLOSE, "not routed by labels, but the output depends on them")


def gradients(s: Subject, adapter: Adapter) -> dict[str, Tensor]:
    """Of a loss and the penalty, in training mode, by name; zeros where there is none."""
    s.model.train()
    adapter.begin_step("stage", 1)
    with s.routed(adapter, s.labels, s.tokens):
        logits = s.model(input_ids=s.tokens, use_cache=False).logits
        (logits.logsumexp(-1) - logits[..., 0]).mean().add(adapter.penalty()).backward()
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in adapter.trainable().items()}
    for parameter in adapter.trainable().values():
        parameter.grad = None
    s.model.eval()
    return found


def checkpointed_gradients_are_gradients(s: Subject) -> None:
    adapter = s.attach()
    plain = gradients(s, adapter)
    promise(all(p.grad is None for p in s.model.parameters()), "the frozen base has gradients")
    s.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = gradients(s, adapter)
    worst = max(distance(plain[n], again[n]) for n in plain)
    promise(worst < CLOSE, f"gradient checkpointing changes gradients by {worst}")
    promise(any(bool(g.any()) for g in plain.values()), "every gradient is zero")


def a_fold_is_its_route(s: Subject) -> None:
    adapter = s.attach()
    base = {n: p.clone() for n, p in s.model.state_dict().items()}
    ranks = s.method.ranks(len(s.tasks))
    for label, task in enumerate(s.tasks):
        try:
            factors = adapter.fold(task)
        except NotFoldable:
            promise(s.ablation, "trait FOLDS, but it does not fold")
            return
        promise({f.a.shape[0] for f in factors.values()} - {0} == {ranks.active} - {0}, f"not of rank {ranks.active}")
        routed = s.route(adapter, torch.full((4,), label), s.tokens)
        for merge in (False, True):
            with adapter.apply(factors, merge=merge):
                off = distance(s.logits(), routed)
            promise(off < CLOSE, f"{task} folded (merge={merge}) differs from its route by {off}")
    after = s.model.state_dict()
    promise(all(torch.equal(base[n], after[n]) for n in base), "weights are not restored bit for bit")


def ranks_stay_within_budgets(s: Subject) -> None:
    n = len(s.tasks)
    for kind in ("active", "stored"):
        for rank in (7, 16, 64):
            try:
                ranks = s.method.within(Budget(kind=kind, rank=rank), n).ranks(n)
            except BudgetError as error:
                promise(any(c.isdigit() for c in str(error)), f"no number in {error}")
                continue
            promise(getattr(ranks, kind) <= rank, f"{kind}:{rank} gives {ranks}")
    promise(
        raises(BudgetError, lambda: s.method.within(Budget(kind="stored", rank=0), n)), "a rank of 0 is no BudgetError"
    )


def fit_learns_the_same_twice_and_leaves_the_base_alone(s: Subject) -> None:
    def fitted(subject: Subject) -> tuple[Adapter, ToyTrainer, float]:
        subject.tasks = [*TASKS, "empty"]
        adapter, data = subject.attach(noise=False), {**toy_data(), "empty": []}
        trainer = ToyTrainer(method=subject.method, adapter=adapter, model=subject.model, data=data)
        rows = [example for task in TASKS for example in data[task]]
        before = trainer.loss(rows)
        subject.method.fit(adapter, trainer, subject.tasks)
        return adapter, trainer, before - trainer.loss(rows)

    base = {n: p.clone() for n, p in s.model.named_parameters()}
    adapter, trainer, gained = fitted(s)
    promise(gained > 0, f"training raises the loss by {-gained}")
    state = adapter.state_dict()
    s.method.fit(adapter, trainer, s.tasks)
    promise(all(torch.equal(v, state[n]) for n, v in adapter.state_dict().items()), "a finished fit trains again")
    if not s.ablation:
        again = fitted(Subject(s.method, s.make))[0].state_dict()
        promise(all(torch.equal(v, again[n]) for n, v in state.items()), "equal seeds train to other weights")
    adapter.detach()
    promise(all(torch.equal(p, base[n]) for n, p in s.model.named_parameters()), "training changed the base")


def choices_need_no_label(s: Subject) -> None:
    adapter = s.attach()
    prompts = [row[: 3 + i % 3] for i, row in enumerate(s.tokens)]
    chosen = adapter.assign(prompts)
    if chosen is None:
        return
    promise(len(chosen) == 4 and set(chosen) <= set(range(len(s.tasks))), f"routes {chosen} for 4 prompts")
    alone = [route for p in prompts for route in adapter.assign([p]) or []]
    promise(list(chosen) == alone, f"a prompt's route depends on the other prompts: {chosen}, {alone}")


_ALWAYS: Sequence[Check] = (fields_survive_json, ablations_and_presets_name_fields)
_ADAPTER: Sequence[Check] = (
    values_at_the_start_depend_on_the_seed_alone,
    off_is_the_base_and_detach_gives_it_back,
    contexts_do_not_nest,
    tokens_routed_are_rows_routed,
    mixed_rows_are_single_rows,
    labels_matter_if_and_only_if_routed,
)
_TRAINS: Sequence[Check] = (
    a_forward_without_a_route_raises,
    adapters_are_saved_and_loaded,
    checkpointed_gradients_are_gradients,
    ranks_stay_within_budgets,
    fit_learns_the_same_twice_and_leaves_the_base_alone,
)


def checks(traits: frozenset[Trait]) -> list[Check]:
    """The checks that a method with these traits has to pass."""
    if Trait.ANSWERS in traits:
        return [*_ALWAYS, answers_come_from_training_examples_alone]
    chosen = [*_ALWAYS, *_ADAPTER]
    if Trait.TRAINS in traits:
        chosen += _TRAINS
    if Trait.FOLDS in traits:
        chosen.append(a_fold_is_its_route)
    if Trait.LABEL_FREE in traits:
        chosen.append(choices_need_no_label)
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
        for check in checks(method.traits)
    ]
