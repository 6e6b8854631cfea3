"""Merged LoRAs: every rule entry by entry, the nearest matrix of a rank, and PEFT's add_weighted_adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_net import LABELS, Net, inputs
from toy_net import TASKS as NET_TASKS

from harness.errors import UsageError
from harness.method import Budget, Ranks
from harness.testing.toys import TASKS, ToyTrainer, perturb, toy_data, toy_model
from methods.base import generator
from methods.layers.merging import trim, truncate
from methods.lora_single import LoRASingle
from methods.merge import RULES, Merge

pytestmark = pytest.mark.numeric

TOKENS = torch.randint(0, 60, (3, 7), generator=torch.Generator().manual_seed(0))


class Untrained(ToyTrainer):
    """Stages are finished without training, so that the LoRAs keep their values."""

    def train(self, stage: str, parameters: Any = None, tasks: Any = None, share: float = 1.0) -> None:
        self.finish(stage)


def merged(method: Merge, without: str | None = None, **options: Any) -> Untrained:
    """Random LoRAs on the toy model, merged; the task ``without`` has no training examples."""
    model = toy_model()
    adapter = method.attach(model, list(TASKS), seed=0)
    perturb(adapter)
    data = {task: [] if task == without else examples for task, examples in toy_data().items()}
    trainer = Untrained(method=method, adapter=adapter, model=model, data=data, **options)
    method.fit(adapter, trainer, list(TASKS))
    return trainer


def layer_of(trainer: ToyTrainer, name: str = "model.layers.1.mlp.up_proj") -> Any:
    adapter: Any = trainer.adapter
    return adapter.layers[name]


def product(layer: Any, i: int) -> Tensor:
    found: Tensor = (layer.scale * layer.b[i] @ layer.a[i]).detach()
    return found


def nearest(update: Tensor, rank: int) -> np.ndarray[Any, Any]:
    left, values, right = np.linalg.svd(update.numpy(), full_matrices=False)
    found: np.ndarray[Any, Any] = (left[:, :rank] * values[:rank]) @ right[:rank]
    return found


def entry(how: str, values: list[float], kept: list[bool], density: float) -> float:
    """One entry of the merged update, by the words of the papers; ``kept``: what pruning leaves."""
    if how == "uniform":
        return sum(values) / len(values)
    if how == "task_arithmetic":
        return 0.4 * sum(values)
    values = [v if k else 0.0 for v, k in zip(values, kept, strict=True)]
    if how.startswith("dare"):
        values = [v / density for v in values]
    if how == "dare":
        return 0.4 * sum(values)
    sign = 1 if sum(values) >= 0 else -1
    agreeing = [v for v in values if v * sign > 0]
    return sum(agreeing) / len(agreeing) if agreeing else 0.0


def survivors(how: str, update: Tensor, density: float, key: tuple[object, ...]) -> Tensor:
    """The entries that are left of an update."""
    if how == "ties":
        order = sorted(range(update.numel()), key=lambda i: -abs(float(update.reshape(-1)[i])))
        chosen = set(order[: math.floor(density * update.numel())])
        return torch.tensor([i in chosen for i in range(update.numel())]).view_as(update)
    return torch.rand(update.shape, generator=generator(0, "dare", *key)) < density


def by_entry(how: str, updates: list[Tensor], density: float, layer: str, kind: str) -> Tensor:
    kept = [survivors(how, u, density, (layer, kind, task)) for u, task in zip(updates, TASKS, strict=True)]
    found = torch.zeros_like(updates[0])
    for at in np.ndindex(*found.shape):
        found[at] = entry(how, [float(u[at]) for u in updates], [bool(k[at]) for k in kept], density)
    return found


@pytest.mark.parametrize("how", list(RULES))
def test_updates_are_merged_entry_by_entry_and_the_nearest_lora_is_kept(how: str) -> None:
    layer = layer_of(merged(Merge(how=how, rank=2, density=0.3)))
    updates = [product(layer, i) for i in range(3)]
    expected = nearest(by_entry(how, updates, 0.3, layer.name, "update"), 2)
    found = (layer.merged_b @ layer.merged_a).detach().numpy()
    assert np.abs(found - expected).max() < 1e-10
    assert np.abs(found).max() > 0.01


@pytest.mark.parametrize("how", list(RULES))
def test_factors_are_merged_entry_by_entry_and_apart(how: str) -> None:
    layer = layer_of(merged(Merge(how=how, on="factor", rank=2, alpha=6, density=0.3)))
    a = by_entry(how, [p.detach() for p in layer.a], 0.3, layer.name, "A")
    b = by_entry(how, [p.detach() for p in layer.b], 0.3, layer.name, "B")
    # Each factor has the root of the weight of a sum, and a mean is a mean of each.
    weight = {"task_arithmetic": 0.4, "dare": 0.4}.get(how, 1.0)
    expected = 3.0 * weight * (b / weight) @ (a / weight)
    assert (layer.merged_b @ layer.merged_a - expected).abs().max() < 1e-10


@pytest.mark.parametrize(("d_out", "d_in"), [(7, 4), (4, 7), (5, 5), (3, 2)])
@pytest.mark.parametrize("rank", [1, 2, 6])
def test_a_truncated_update_is_the_nearest_matrix_of_its_rank(d_out: int, d_in: int, rank: int) -> None:
    update = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = truncate(update, rank)
    assert np.abs((found.lora.b @ found.lora.a).numpy() - nearest(update, rank)).max() < 1e-10
    values = np.linalg.svd(update.numpy())[1] ** 2
    assert found.kept == pytest.approx(values[:rank].sum() / values.sum(), abs=1e-12)
    assert truncate(torch.zeros_like(update), rank).kept == 1.0


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.1, [0.0, 0.0, 0.0, 0.0, 0.0]),  # less than one entry
        (0.2, [0.0, -5.0, 0.0, 0.0, 0.0]),
        (0.4, [0.0, -5.0, 3.0, 0.0, -3.0]),  # entries of equal magnitude are all kept
        (1.0, [1.0, -5.0, 3.0, 0.0, -3.0]),
    ],
)
def test_trimming_keeps_the_largest_entries(density: float, expected: list[float]) -> None:
    assert trim(torch.tensor([[1.0, -5.0, 3.0, 0.0, -3.0]]), density).tolist() == [expected]


PEFT_TYPES = [
    ("uniform", "factor", "linear", 1 / 9),  # means of A and of B: a third of each sum
    ("uniform", "update", "svd", 1 / 3),
    ("task_arithmetic", "factor", "linear", 0.7),
    ("task_arithmetic", "update", "svd", 0.7),
    ("ties", "factor", "ties", 0.9),
    ("ties", "update", "ties_svd", 0.9),
    # Nothing is dropped, since PEFT draws from the global generator.
    ("dare", "factor", "dare_linear", 0.7),
    ("dare_ties", "update", "dare_ties_svd", 0.9),
]


@pytest.mark.long
@pytest.mark.parametrize(("how", "on", "combination", "weight"), PEFT_TYPES)
def test_merging_is_peft_s_add_weighted_adapter(how: str, on: str, combination: str, weight: float) -> None:
    from peft import LoraConfig, get_peft_model

    density = 1.0 if how.startswith("dare") else 0.3
    own = None if how == "uniform" else weight
    trainer = merged(Merge(how=how, on=on, weight=own, rank=2, alpha=6, density=density))
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=2, lora_alpha=6, target_modules=names)
    peft: Any = get_peft_model(toy_model(), config, "0", autocast_adapter_dtype=False)
    for i in (1, 2):
        peft.add_adapter(str(i), LoraConfig(r=2, lora_alpha=6, target_modules=names))
    parameters = dict(peft.named_parameters())
    for name, parameter in trainer.adapter.trainable().items():
        task = next((task for task in TASKS if name.endswith(f".{task}")), None)
        if task is not None:
            module, _, factor = name.removesuffix(f".{task}").rpartition(".")
            theirs = parameters[f"base_model.model.{module}.lora_{factor}.{TASKS.index(task)}.weight"]
            theirs.data = parameter.detach().clone()
    peft.add_weighted_adapter(["0", "1", "2"], [weight] * 3, "merged", combination, svd_rank=2, density=density)
    peft.set_adapter("merged")
    with torch.no_grad(), trainer.adapter.route(torch.zeros(3, dtype=torch.long)):
        mine = trainer.model(input_ids=TOKENS, use_cache=False).logits
        expected = peft.double().eval()(input_ids=TOKENS, use_cache=False).logits
        base = toy_model()(input_ids=TOKENS, use_cache=False).logits
    assert (mine - expected).abs().max() < 1e-5
    assert (mine - base).abs().max() > 1e-3


def test_the_routed_forward_and_its_gradients_are_those_of_one_lora() -> None:
    net: Any = Net().eval()
    adapter = Merge(rank=2, alpha=16).attach(net, NET_TASKS, seed=0)
    perturb(adapter)
    x = inputs()
    target = torch.randn(4, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with adapter.route(torch.tensor(LABELS)):
        out = net(x)
        (out * target).sum().backward()
    values: Mapping[str, Tensor] = {n: p.detach().clone().requires_grad_() for n, p in adapter.trainable().items()}

    def share(module: str, row: Tensor) -> Tensor:
        return values[f"{module}.merged.B"] @ (values[f"{module}.merged.A"] @ row)

    rows = []
    for row in x.flatten(0, 1):
        hidden = torch.tanh(net.first.base(row) + share("first", row))
        rows.append(net.second.base(hidden) + share("second", hidden))
    expected = torch.stack(rows).view(out.shape)
    (expected * target).sum().backward()  # type: ignore[no-untyped-call]
    assert (out - expected).abs().max() < 1e-10
    for name, parameter in adapter.trainable().items():
        if ".merged." in name:
            assert (parameter.grad - values[name].grad).abs().max() < 1e-10, name
        else:
            assert parameter.grad is None, name


def test_the_mean_of_equal_loras_is_the_lora() -> None:
    for on in ("update", "factor"):
        trainer = merged(Merge(rank=2))
        adapter: Any = trainer.adapter
        state = adapter.state_dict()
        same = {n: state[f"{n.rpartition(f'.{task}')[0]}.first"] for task in TASKS for n in state if n.endswith(task)}
        adapter.load_state_dict({**state, **same})
        again = Untrained(method=Merge(rank=2, on=on), adapter=adapter, model=trainer.model, data=toy_data())
        again.method.fit(adapter, again, list(TASKS))
        layer = layer_of(again)
        assert (layer.merged_b @ layer.merged_a - product(layer, 0)).abs().max() < 1e-10


def test_loras_of_tasks_without_training_examples_are_not_merged() -> None:
    layer = layer_of(merged(Merge(rank=2), without=TASKS[1]))
    expected = nearest((product(layer, 0) + product(layer, 2)) / 2, 2)
    assert np.abs((layer.merged_b @ layer.merged_a).detach().numpy() - expected).max() < 1e-10


def test_where_nothing_is_trained_the_merged_lora_adds_nothing() -> None:
    method = Merge(rank=2)
    model = toy_model()
    adapter = method.attach(model, list(TASKS), seed=0)
    trainer = Untrained(method=method, adapter=adapter, model=model, data={task: [] for task in TASKS})
    method.fit(adapter, trainer, list(TASKS))
    assert not any(layer.merged_b.any() for layer in adapter.layers.values())


def test_what_is_dropped_depends_on_the_seed_and_on_nothing_else() -> None:
    one, again, other = (layer_of(merged(Merge(how="dare", rank=2), seed=seed)).merged_b for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_dropping_keeps_the_expectation() -> None:
    layer = layer_of(merged(Merge(rank=2)))
    update = layer.merged_b.new_ones(40, 50)
    kept = Merge(how="dare", density=0.25)._pruned(update, RULES["dare"], lambda: torch.Generator().manual_seed(1))
    assert set(kept.unique().tolist()) == {0.0, 4.0}
    assert float(kept.mean()) == pytest.approx(1, abs=0.15)


def test_its_loras_are_those_of_lora_single_and_the_artefact_names_what_was_kept() -> None:
    def fitted(method: Any) -> ToyTrainer:
        model = toy_model()
        adapter = method.attach(model, list(TASKS), seed=0)
        trainer = ToyTrainer(method=method, adapter=adapter, model=model, data=toy_data())
        method.fit(adapter, trainer, list(TASKS))
        return trainer

    single, trainer = fitted(LoRASingle(rank=2)).adapter.state_dict(), fitted(Merge(rank=2))
    mine = trainer.adapter.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in single.items())
    assert Merge().stage_key("first", TASKS) == LoRASingle().stage_key("first", TASKS) is not None
    kept = trainer.artefacts["kept"]
    adapter: Any = trainer.adapter
    assert kept.keys() == adapter.layers.keys()
    assert all(0 < share <= 1 for share in kept.values())


def test_stored_and_active_parameters_follow_from_the_ranks() -> None:
    assert Merge(rank=4).ranks(16) == Ranks(stored=68, active=4)
    budgeted: Any = Merge().within(Budget(kind="active", rank=16), 16)
    assert budgeted == Merge()
    adapter: Any = merged(Merge(rank=2)).adapter
    shapes = [(layer.in_features, layer.out_features) for layer in adapter.layers.values()]
    assert sum(p.numel() for p in adapter.trainable().values()) == sum(4 * 2 * (i + o) for i, o in shapes)
    folded = adapter.fold(TASKS[0]).values()
    assert sum(f.a.numel() + f.b.numel() for f in folded) == sum(2 * (i + o) for i, o in shapes)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"how": "tise"}, "method.how.*tise.*Did you mean .ties"),
        ({"on": "both"}, "method.on.*both"),
        ({"weight": 0.5}, "method.weight=0.5: the mean"),
        ({"how": "ties", "weight": 0.0}, "method.weight=0.0 must be above 0"),
        ({"density": 0.0}, r"method.density=0.0"),
        ({"density": 1.5}, r"method.density=1.5"),
    ],
)
def test_settings_that_merge_nothing_are_refused(fields: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Merge(**fields)
