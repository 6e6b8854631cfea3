"""The promises of every method, one check for each; ``harness.testing.contract`` selects them by method.

The name of a check is the promise. Each takes a fresh subject and raises an AssertionError that names what was promised
and what was found.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch

from harness.errors import BudgetError, NotFoldable
from harness.method import Adapter, Budget, Trait
from harness.testing.subject import Subject, distance, gradients, promise, raises
from harness.testing.toys import TASKS, ToyTrainer, toy_data

CLOSE = 1e-6  # The toy model's norms compute in float32, whatever the dtype of its weights.


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
    promise(isinstance(cls.version, int) and cls.version > 0, f"version {cls.version!r} is not a positive integer")
    promise(bool(cls.summary) and "\n" not in cls.summary, "summary is not one line")


def predictions_come_from_training_examples_alone(s: Subject) -> None:
    train = toy_data()[TASKS[0]]
    blank = [dataclasses.replace(example, target="") for example in train]
    predictions = s.baseline.predict(blank, train)
    promise(len(predictions) == len(blank), f"{len(predictions)} predictions for {len(blank)} examples")
    known = {"", *(e.target for e in train)}
    promise(set(predictions) <= known, f"predictions that are neither training targets nor '': {predictions}")
    promise(list(predictions) == list(s.baseline.predict(blank, train)), "a second call predicts otherwise")
    promise(
        list(s.baseline.predict(blank, [])) == [""] * len(blank), "without training examples, predictions are not ''"
    )


def values_at_the_start_depend_on_the_seed_alone(s: Subject) -> None:
    before = torch.get_rng_state()
    adapter = s.attach(seed=3, noise=False)
    promise(torch.equal(before, torch.get_rng_state()), "attach draws from torch's global random generator")
    first = adapter.state_dict()
    adapter.detach()
    torch.manual_seed(11)
    again, other = s.attach(seed=3, noise=False).state_dict(), Subject(s.method, s.make).attach(seed=4, noise=False)
    promise(first.keys() == again.keys(), "attaching twice gives other names")
    promise(all(torch.equal(first[n], again[n]) for n in first), "attaching twice gives other values")
    if s.method.trains:
        changed = any(not torch.equal(first[n], v) for n, v in other.state_dict().items())
        promise(changed, "another seed gives the same initial values")


def off_is_the_base_and_detach_gives_it_back(s: Subject) -> None:
    base, modules = s.logits(), {name: type(module) for name, module in s.model.named_modules()}
    adapter = s.attach()
    with adapter.off():
        promise(torch.equal(s.logits(), base), "off is not the base model's output, bit for bit")
    adapter.detach()
    promise({n: type(m) for n, m in s.model.named_modules()} == modules, "detach leaves other modules behind")
    promise(torch.equal(s.logits(), base), "after detach the model has other outputs")


def a_forward_without_a_route_raises(s: Subject) -> None:
    adapter = s.attach()
    promise(raises(RuntimeError, s.logits), "a forward outside every context returns a result")
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
            promise(raises(RuntimeError, inner[name]), f"{name} opens inside a route")


def adapters_are_saved_and_loaded(s: Subject) -> None:
    adapter = s.attach()
    state, other = adapter.state_dict(), Subject(s.method, s.make)
    loaded = other.attach(seed=9, noise=False)
    loaded.load_state_dict(state)
    mine, theirs = s.route(adapter, s.labels, s.tokens), other.route(loaded, s.labels, s.tokens)
    promise(torch.equal(mine, theirs), "a loaded adapter has other outputs")
    promise(set(adapter.trainable()) <= set(state), "state_dict lacks trainable parameters")
    name = next(iter(state))
    lacking = {n: v for n, v in state.items() if n != name}
    for wrong in (lacking, {**state, "stranger": state[name]}, {**state, name: state[name][None]}):
        promise(raises(ValueError, partial(loaded.load_state_dict, wrong)), "a state that does not fit is loaded")


def routing_tokens_equals_routing_sequences(s: Subject) -> None:
    adapter = s.attach()
    sequences = s.route(adapter, s.labels, s.tokens)
    tokens = s.route(adapter, s.labels[:, None].expand(s.tokens.shape), s.tokens)
    off = distance(sequences, tokens)
    promise(off < CLOSE, f"a route of tokens differs from the same route of sequences by {off}")


def a_sequence_does_not_depend_on_the_others_in_its_batch(s: Subject) -> None:
    adapter = s.attach()
    mixed = s.route(adapter, s.labels, s.tokens)
    alone = [s.route(adapter, s.labels[i : i + 1], s.tokens[i : i + 1]) for i in range(4)]
    promise(distance(mixed, torch.cat(alone)) < CLOSE, "a sequence's output depends on the tasks of the others")
    beams = s.route(adapter, s.labels, s.tokens.repeat_interleave(2, 0))
    promise(
        distance(beams, mixed.repeat_interleave(2, 0)) < CLOSE, "sequences repeated by beam search lose their route"
    )


def labels_matter_if_and_only_if_routed(s: Subject) -> None:
    adapter = s.attach()
    one, other = (s.route(adapter, labels, s.tokens) for labels in (s.labels, (s.labels + 1) % 3))
    soft = s.has(Trait.LABEL_FREE) and adapter.assign(list(s.tokens)) is None
    if soft and s.ablation:
        return  # It mixes by the prompt, or uses the labels after all.
    if s.has(Trait.ROUTED) and not soft:
        promise(s.ablation or distance(one, other) > CLOSE, "routed, but every task gets the same output")
    else:
        promise(distance(one, other) < CLOSE, "not routed by labels, but the output depends on them")


def parts_of_a_task_get_gradients_from_its_own_sequences_alone(s: Subject) -> None:
    adapter = s.attach()
    parameters, parts = adapter.trainable(), adapter.task_parts()
    promise(set(parts) <= set(parameters), f"task_parts names parameters that are not trained: {sorted(parts)}")
    for name, of in parts.items():
        promise(len(of.tasks) == parameters[name].shape[of.dim], f"task_parts does not divide {name} along {of.dim}")
    for absent in range(len(s.tasks)):
        others = torch.tensor([i for i in range(len(s.tasks)) if i != absent])
        for parameter in parameters.values():
            parameter.grad = None
        with s.routed(adapter, others[torch.arange(4) % len(others)], s.tokens):
            logits = s.model(input_ids=s.tokens, use_cache=False).logits
            (logits.logsumexp(-1).sum() + adapter.penalty()).backward()
        for name, of in parts.items():
            index = torch.tensor([i for i, task in enumerate(of.tasks) if task == absent], dtype=torch.long)
            gradient = parameters[name].grad
            quiet = gradient is None or not gradient.index_select(of.dim, index).any()
            promise(quiet, f"{name}: the part of {s.tasks[absent]} has a gradient without any of its sequences")


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
    ranks = s.adapted.ranks(len(s.tasks))
    for label, task in enumerate(s.tasks):
        try:
            factors = adapter.fold(task)
        except NotFoldable:
            promise(s.ablation, "trait FOLDS, but it does not fold")
            return
        promise(
            {f.a.shape[0] for f in factors.values()} - {0} == {ranks.active} - {0},
            f"a fold does not have the active rank {ranks.active}",
        )
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
                ranks = s.adapted.within(Budget(kind=kind, rank=rank), n).ranks(n)
            except BudgetError as error:
                promise(any(c.isdigit() for c in str(error)), f"no number in {error}")
                continue
            promise(getattr(ranks, kind) <= rank, f"{kind}:{rank} gives {ranks}")
    promise(
        raises(BudgetError, lambda: s.adapted.within(Budget(kind="stored", rank=0), n)),
        "a budget of rank 0 raises no BudgetError",
    )


def fit_learns_the_same_twice_and_leaves_the_base_alone(s: Subject) -> None:
    def fitted(subject: Subject) -> tuple[Adapter, ToyTrainer, float]:
        subject.tasks = [*TASKS, "empty"]
        adapter, data = subject.attach(noise=False), {**toy_data(), "empty": []}
        trainer = ToyTrainer(method=subject.adapted, adapter=adapter, model=subject.model, data=data)
        examples = [example for task in TASKS for example in data[task]]
        before = trainer.loss(examples)
        subject.adapted.fit(adapter, trainer, subject.tasks)
        return adapter, trainer, before - trainer.loss(examples)

    base = {n: p.clone() for n, p in s.model.named_parameters()}
    adapter, trainer, gained = fitted(s)
    promise(gained > 0, f"training does not lower the loss: {gained}")
    state = adapter.state_dict()
    s.adapted.fit(adapter, trainer, s.tasks)
    promise(all(torch.equal(v, state[n]) for n, v in adapter.state_dict().items()), "a finished fit trains again")
    if not s.ablation:
        again = fitted(Subject(s.method, s.make))[0].state_dict()
        promise(all(torch.equal(v, again[n]) for n, v in state.items()), "equal seeds train to other weights")
    adapter.detach()
    promise(all(torch.equal(p, base[n]) for n, p in s.model.named_parameters()), "training changed the base")


def routes_are_chosen_from_the_prompt_alone(s: Subject) -> None:
    adapter = s.attach()
    prompts = [tokens[: 3 + i % 3] for i, tokens in enumerate(s.tokens)]
    chosen = adapter.assign(prompts)
    if chosen is None:
        return
    promise(len(chosen) == 4 and set(chosen) <= set(range(len(s.tasks))), f"routes {chosen} for 4 prompts")
    alone = [route for p in prompts for route in adapter.assign([p]) or []]
    promise(list(chosen) == alone, f"a prompt's route depends on the other prompts: {chosen}, {alone}")
