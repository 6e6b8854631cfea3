"""Arrow against its equation by hand, against numpy's singular vectors, and against PEFT's Arrow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_net import LABELS, TASKS, Net, inputs

from harness.errors import NotFoldable, UsageError
from harness.method import Budget, Ranks
from harness.testing.toys import TASKS as TOY_TASKS
from harness.testing.toys import ToyTrainer, perturb, toy_data, toy_model
from methods.arrow import Arrow, top_right_singular_vectors
from methods.lora_single import LoRASingle

pytestmark = pytest.mark.numeric

TOKENS = torch.randint(0, 60, (3, 7), generator=torch.Generator().manual_seed(0))


def attached(method: Arrow) -> tuple[Any, Any]:
    model = toy_model()
    adapter = method.attach(model, list(TOY_TASKS), seed=0)
    perturb(adapter)
    return model, adapter


def routed(model: Any, adapter: Any, label: int = 0) -> Tensor:
    with torch.no_grad(), adapter.route(torch.full((len(TOKENS),), label)):
        logits: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return logits


@pytest.mark.parametrize(("d_in", "d_out", "rank"), [(9, 5, 2), (5, 9, 2), (3, 7, 4), (7, 3, 4), (6, 6, 1)])
def test_directions_are_the_right_singular_vectors_that_numpy_finds(d_in: int, d_out: int, rank: int) -> None:
    state = torch.Generator().manual_seed(1)
    a = torch.randn(4, rank, d_in, generator=state, dtype=torch.float64)
    b = torch.randn(4, d_out, rank, generator=state, dtype=torch.float64)
    for found, update in zip(top_right_singular_vectors(a, b), b @ a, strict=True):
        expected = np.linalg.svd(update.numpy())[2][0]
        assert abs(float(found @ torch.tensor(expected))) == pytest.approx(1, abs=1e-12)
        assert float(found.norm()) == pytest.approx(1, abs=1e-12)


def test_close_singular_values_do_not_blur_the_direction() -> None:
    a = torch.eye(2, 5, dtype=torch.float64)[None]
    b = torch.zeros(1, 4, 2, dtype=torch.float64)
    b[0, 0, 0], b[0, 1, 1] = 1.0, 1.001
    assert top_right_singular_vectors(a, b)[0].abs().tolist() == pytest.approx([0, 1, 0, 0, 0], abs=1e-12)


def by_hand(row: Tensor, module: str, values: Mapping[str, Tensor], top_k: int, temperature: float) -> Tensor:
    """What one token gets: s sum_k c_k B_k A_k x, with every weight from an explicit loop."""
    scores = []
    for task in TASKS:
        update = (values[f"{module}.B.{task}"] @ values[f"{module}.A.{task}"]).detach()
        direction = torch.tensor(np.linalg.svd(update.numpy())[2][0])
        scores.append((direction @ row).abs() / temperature)
    chosen = sorted(range(len(TASKS)), key=lambda k: -float(scores[k].detach()))[:top_k]
    whole = sum(scores[k].exp() for k in chosen)
    out = torch.zeros(values[f"{module}.B.{TASKS[0]}"].shape[0], dtype=torch.float64)
    for k in chosen:
        a, b = values[f"{module}.A.{TASKS[k]}"], values[f"{module}.B.{TASKS[k]}"]
        out = out + 8.0 * (scores[k].exp() / whole) * (b @ (a @ row))
    return out


@pytest.mark.parametrize(("top_k", "temperature"), [(1, 1.0), (2, 1.0), (2, 0.3), (None, 2.0)])
def test_arrow_is_its_equation_with_the_gradient_of_every_parameter(top_k: int | None, temperature: float) -> None:
    net: Any = Net().eval()
    adapter = Arrow(rank=2, alpha=16, top_k=top_k, temperature=temperature).attach(net, TASKS, seed=0)
    perturb(adapter)
    x = inputs()
    target = torch.randn(4, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with adapter.route(torch.tensor(LABELS)):
        out = net(x)
        (out * target).sum().backward()
    values = {n: p.detach().clone().requires_grad_() for n, p in adapter.trainable().items()}
    rows = []
    for row in x.flatten(0, 1):
        hidden = torch.tanh(net.first.base(row) + by_hand(row, "first", values, top_k or 3, temperature))
        rows.append(net.second.base(hidden) + by_hand(hidden, "second", values, top_k or 3, temperature))
    expected = torch.stack(rows).view(out.shape)
    (expected * target).sum().backward()  # type: ignore[no-untyped-call]
    assert (out - expected).abs().max() < 1e-10
    assert len(values) == 2 * 2 * len(TASKS)
    for name, parameter in adapter.trainable().items():
        mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        by_loop = values[name].grad
        assert (mine - (0 if by_loop is None else by_loop)).abs().max() < 1e-10, name
    assert any(bool(p.grad.any()) for p in adapter.trainable().values())


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_arrow_is_peft_s_arrow(top_k: int) -> None:
    from peft import ArrowConfig, LoraConfig, get_peft_model

    ours, adapter = attached(Arrow(rank=2, alpha=6, top_k=top_k, temperature=0.7))
    with torch.no_grad():
        # PEFT's directions come from 15 steps of a power iteration, which needs one clearly largest singular value.
        for name, parameter in adapter.trainable().items():
            if ".B." in name:
                parameter[:, 1].mul_(0.1)
    plain = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]}
    plain["target_modules"] += ["gate_proj", "down_proj"]
    peft: Any = get_peft_model(toy_model(), LoraConfig(**plain), "task_0", autocast_adapter_dtype=False)
    for i in (1, 2):
        peft.add_adapter(f"task_{i}", LoraConfig(**plain))
    state = {**dict(peft.named_parameters()), **dict(peft.named_buffers())}
    for name, parameter in adapter.trainable().items():
        task = next(task for task in TOY_TASKS if name.endswith(f".{task}"))
        module, _, factor = name.removesuffix(f".{task}").rpartition(".")
        key = f"base_model.model.{module}.lora_{factor}.task_{TOY_TASKS.index(task)}.weight"
        state[key].data = parameter.detach().clone()
    router = ArrowConfig(top_k=top_k, router_temperature=0.7, rng_seed=0)
    router.task_adapter_names = ["task_0", "task_1", "task_2"]
    peft.add_adapter("arrow_router", LoraConfig(arrow_config=router, r=2, target_modules=plain["target_modules"]))
    peft.set_adapter("arrow_router")
    with torch.no_grad():
        expected = peft.double().eval()(input_ids=TOKENS, use_cache=False).logits
    mine = routed(ours, adapter)
    assert (mine - expected).abs().max() < 1e-5
    assert (mine - toy_model()(input_ids=TOKENS).logits).abs().max() > 0.02


def test_a_lora_without_an_update_takes_no_part() -> None:
    model, adapter = attached(Arrow(rank=2, top_k=2))
    before = routed(model, adapter)
    for name, parameter in adapter.trainable().items():
        if f".B.{TOY_TASKS[1]}" in name:
            with torch.no_grad():
                parameter.zero_()
    without = routed(model, adapter)
    assert (without - before).abs().max() > 1e-3, "changed factors give new directions"
    other = toy_model()
    alone = Arrow(rank=2, top_k=2).attach(other, [TOY_TASKS[0], TOY_TASKS[2]], seed=0)
    alone.load_state_dict({n: v for n, v in adapter.state_dict().items() if not n.endswith(f".{TOY_TASKS[1]}")})
    assert (routed(other, alone) - without).abs().max() < 1e-6


def test_where_no_lora_is_trained_arrow_is_the_base_model() -> None:
    model = toy_model()
    adapter = Arrow(rank=2).attach(model, list(TOY_TASKS), seed=0)
    with torch.no_grad():
        assert torch.equal(routed(model, adapter), toy_model()(input_ids=TOKENS, use_cache=False).logits)


def test_one_task_s_lora_has_all_the_weight() -> None:
    arrow, single = toy_model(), toy_model()
    mine = Arrow(rank=2).attach(arrow, TOY_TASKS[:1], seed=0)
    perturb(mine)
    theirs = LoRASingle(rank=2).attach(single, TOY_TASKS[:1], seed=0)
    theirs.load_state_dict(mine.state_dict())
    assert (routed(arrow, mine) - routed(single, theirs)).abs().max() < 1e-6


def test_its_loras_are_those_of_lora_single() -> None:
    def fitted(method: Any) -> dict[str, Tensor]:
        model = toy_model()
        adapter = method.attach(model, list(TOY_TASKS), seed=0)
        trainer = ToyTrainer(method=method, adapter=adapter, model=model, data=toy_data())
        method.fit(adapter, trainer, list(TOY_TASKS))
        found: dict[str, Tensor] = adapter.state_dict()
        return found

    single, arrow = fitted(LoRASingle(rank=2)), fitted(Arrow(rank=2))
    assert single.keys() == arrow.keys()
    assert all(torch.equal(value, arrow[name]) for name, value in single.items())
    assert Arrow().stage_key("first", TOY_TASKS) == LoRASingle().stage_key("first", TOY_TASKS) is not None
    assert Arrow().kept_stages(TOY_TASKS) == TOY_TASKS


def test_decoding_token_by_token_gives_the_logits_of_one_pass() -> None:
    model, adapter = attached(Arrow(rank=2))
    whole = routed(model, adapter)
    with torch.no_grad(), adapter.route(torch.zeros(3, dtype=torch.long)):
        cache, steps = None, list[Tensor]()
        for i in range(TOKENS.shape[1]):
            step = model(input_ids=TOKENS[:, i : i + 1], past_key_values=cache, use_cache=True)
            cache, steps = step.past_key_values, [*steps, step.logits]
    assert (torch.cat(steps, 1) - whole).abs().max() < 1e-6


def test_it_has_no_fold_and_counts_the_loras_of_a_token() -> None:
    _, adapter = attached(Arrow(rank=2))
    with pytest.raises(NotFoldable, match="cannot be exported"):
        adapter.fold(TOY_TASKS[0])
    assert Arrow(rank=4, top_k=3).ranks(16) == Ranks(stored=64, active=12)
    assert Arrow(rank=4, top_k=3).ranks(2) == Ranks(stored=8, active=8)
    assert Arrow(rank=4, top_k=None).ranks(5) == Ranks(stored=20, active=20)
    within: Any = Arrow().within(Budget(kind="active", rank=16), 16)
    assert within.rank == 5
    stored = sum(p.numel() for p in adapter.trainable().values())
    shapes = [(layer.in_features, layer.out_features) for layer in adapter.layers.values()]
    assert stored == sum(3 * 2 * (d_in + d_out) for d_in, d_out in shapes)


@pytest.mark.parametrize(("fields", "words"), [({"top_k": 0}, "top_k=0"), ({"temperature": 0.0}, "temperature=0.0")])
def test_settings_that_choose_nothing_are_refused(fields: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Arrow(**fields)


def test_larger_temperatures_spread_the_weights_more_evenly() -> None:
    def entropies(temperature: float) -> Sequence[float]:
        _, adapter = attached(Arrow(rank=2, top_k=None, temperature=temperature))
        layer = next(iter(adapter.layers.values()))
        x = torch.randn(1, 4, layer.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        weights = layer.token_weights(x)[0].detach()
        assert weights.sum(-1).tolist() == pytest.approx([1.0] * 4)
        entropy: list[float] = (-(weights * weights.log()).sum(-1)).tolist()
        return entropy

    cold, warm = entropies(0.5), entropies(50.0)
    assert all(low < high for low, high in zip(cold, warm, strict=True))
    assert warm == pytest.approx([math.log(3)] * 4, abs=1e-3)
