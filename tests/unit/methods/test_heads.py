"""MTL-LoRA, M-LoRA and MultiLoRA: equations, initial values, sizes, and the special cases that are a plain LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from by_loop import assert_equals_loop
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from toy_net import LABELS, TASKS, Net, inputs

from harness.errors import UsageError
from harness.method import Budget, Ranks
from harness.testing.toys import TASKS as TOY_TASKS
from harness.testing.toys import ToyTrainer, perturb, toy_data, toy_model
from methods.base import LoRAMethod
from methods.lora_all import LoRAAll
from methods.m_lora import MLoRA
from methods.mtl_lora import MTLLoRA
from methods.multi_lora import MultiLoRA

pytestmark = pytest.mark.numeric

MTL = [
    MTLLoRA(rank=4),
    MTLLoRA(rank=4, task_map="diagonal", tau=0.5),
    MTLLoRA(rank=4, task_map="identity", n_heads=2),
    MTLLoRA(rank=4, gate="uniform"),
    MTLLoRA(rank=4, n_heads=1),
]
EVERY = [*MTL, MLoRA(rank=4), MultiLoRA(expert_rank=2), MultiLoRA(expert_rank=2, scaling=False)]


def net_of(method: LoRAMethod) -> tuple[Any, Any]:
    """The toy network in evaluation mode, with the method's adapter and noise on its parameters."""
    net = Net().eval()
    adapter = method.attach(net, TASKS, seed=0)
    perturb(adapter)
    return net, adapter


def fitted(method: Any, data: Any = None, **options: Any) -> ToyTrainer:
    """A training of a few steps on the toy tasks."""
    model = toy_model()
    adapter = method.attach(model, list(TOY_TASKS), seed=0)
    trainer = ToyTrainer(method=method, adapter=adapter, model=model, data=data or toy_data(), **options)
    method.fit(adapter, trainer, list(TOY_TASKS))
    return trainer


@pytest.mark.parametrize("method", MTL, ids=["full", "diagonal", "identity", "uniform", "one head"])
def test_mtl_lora_is_its_equation(method: MTLLoRA) -> None:
    def share(module: str, task: int, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        p = torch.full((method.n_heads,), 1 / method.n_heads, dtype=torch.float64)
        if method.gate == "logits" and method.n_heads > 1:
            w = values[f"{module}.gate.scores.logits"][task] / method.tau
            p = w.exp() / w.exp().sum()
        z = x @ values[f"{module}.A"].T
        if method.task_map == "full":
            z = torch.stack([values[f"{module}.lambda.weight"][task] @ token for token in z])
        if method.task_map == "diagonal":
            z = z @ torch.diag(values[f"{module}.lambda.weight"][task])
        b = sum((p[i] * part for i, part in enumerate(values[f"{module}.B"].split(4, 1))), torch.zeros(()))
        return 32 / 4 * (z @ b.T)

    if method.task_map == "identity":
        assert not any("lambda" in name for name in net_of(method)[1].trainable())
    assert_equals_loop(method, share, inputs())


def test_m_lora_is_its_equation_without_dropout() -> None:
    def share(module: str, task: int, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        heads = values[f"{module}.B"].split(4, 1)
        return 32 / 4 * sum((x @ values[f"{module}.A"].T @ b.T for b in heads), torch.zeros(()))

    assert_equals_loop(MLoRA(rank=4, n_heads=3), share, inputs())


@pytest.mark.parametrize("scaling", [True, False])
def test_multi_lora_is_its_equation(scaling: bool) -> None:
    def share(module: str, task: int, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(3):
            part = slice(2 * i, 2 * i + 2)
            out = x @ values[f"{module}.A"][part].T @ values[f"{module}.B"][:, part].T
            total = total + 32 / 2 * (out * values[f"{module}.v"][i] if scaling else out)
        return total

    assert_equals_loop(MultiLoRA(n_loras=3, expert_rank=2, scaling=scaling), share, inputs())


@pytest.mark.parametrize("method", EVERY, ids=str)
def test_a_fold_is_its_route_to_1e_10(method: LoRAMethod) -> None:
    net, adapter = net_of(method)
    for label, task in enumerate(TASKS):
        with adapter.route(torch.full((4,), label)):
            routed = net(inputs())
        factors = adapter.fold(task)
        assert {f.a.shape[0] for f in factors.values()} == {method.ranks(len(TASKS)).active}
        for merge in (True, False):
            with adapter.apply(factors, merge=merge):
                assert (net(inputs()) - routed).abs().max() < 1e-10


@pytest.mark.parametrize("method", MTL, ids=str)
def test_tokens_of_several_tasks_in_one_sequence_use_their_own_shares(method: LoRAMethod) -> None:
    net, adapter = net_of(method)
    x, route = inputs(), torch.tensor([[0, 1, 2], [1, 1, 0], [2, 2, 2], [0, 2, 1]])
    with adapter.route(route):
        packed = net(x)
    for sequence in range(4):
        for token in range(3):
            with adapter.route(route[sequence, token, None]):
                alone = net(x[sequence, token, None, None])
            assert (packed[sequence, token] - alone).abs().max() < 1e-10


@pytest.mark.parametrize(
    "method",
    [MTLLoRA(rank=4, n_heads=1, task_map="identity"), MLoRA(rank=4, n_heads=1, head_dropout=0.0)],
    ids=["mtl_lora", "m_lora"],
)
def test_one_head_without_a_map_and_dropout_trains_as_lora_all_bit_for_bit(method: LoRAMethod) -> None:
    ours, plain = (fitted(m).adapter.state_dict() for m in (method, LoRAAll(rank=4)))
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    assert any(name.endswith("B") and value.any() for name, value in plain.items())


@pytest.mark.parametrize(
    ("method", "equal"),
    [
        (MTLLoRA(rank=4, gate="uniform"), True),
        (MTLLoRA(rank=4), False),
        (MLoRA(rank=4, head_dropout=0.0), True),
        (MLoRA(rank=4), False),
    ],
    ids=["uniform", "gate", "no dropout", "dropout"],
)
def test_heads_differ_only_if_something_breaks_their_symmetry(method: Any, equal: bool) -> None:
    for name, value in fitted(method).adapter.state_dict().items():
        if name.endswith(".B"):
            first, *others = value.split(4, 1)
            assert first.any()
            assert all(torch.allclose(first, other, atol=1e-12) for other in others) is equal, name


def test_the_sum_of_the_heads_of_m_lora_moves_as_many_times_further_in_a_step_of_adam_as_there_are_heads() -> None:
    summed, plain = (
        fitted(m, steps=1).adapter.state_dict() for m in (MLoRA(rank=4, n_heads=3, head_dropout=0.0), LoRAAll(rank=4))
    )
    for name, b in plain.items():
        if name.endswith(".B"):
            assert b.any()
            assert torch.allclose(sum(summed[name].split(4, 1)), 3 * b, rtol=1e-3, atol=0), name


def test_each_head_of_m_lora_has_a_mask_of_its_own_and_only_in_training() -> None:
    net, adapter = net_of(MLoRA(rank=4, n_heads=3, head_dropout=0.5, targets="first"))
    x, a, b = inputs(), *(adapter.trainable()[f"first.{name}"].detach() for name in "AB")
    with adapter.route(torch.tensor(LABELS)):
        quiet = net.first(x)
        net.train()
        torch.manual_seed(1)
        dropped = net.first(x)
    torch.manual_seed(1)
    masks = F.dropout(torch.ones(4, 3, 12, dtype=torch.float64), 0.5).split(4, 2)
    shares = [(x @ a.T * mask) @ head.T for mask, head in zip(masks, b.split(4, 1), strict=True)]
    assert (dropped - net.first.base(x) - 32 / 4 * sum(shares)).abs().max() < 1e-10
    assert (dropped - quiet).abs().max() > 1e-3
    assert not torch.equal(masks[0], masks[1])


def test_initial_values_are_those_of_the_releases() -> None:
    net = Net()
    state = MTLLoRA(rank=4, n_heads=3).attach(net, TASKS, seed=0).state_dict()
    plain = LoRAAll(rank=4).attach(Net(), TASKS, seed=0).state_dict()
    assert torch.equal(state["first.A"], plain["first.A"])
    assert not state["first.B"].any()
    assert torch.equal(state["first.lambda.weight"], torch.eye(4).double().repeat(3, 1, 1))
    logits = state["first.gate.scores.logits"]
    assert logits.abs().max() <= 3**-0.5
    assert len({tuple(w.tolist()) for w in logits}) == 3
    fewer = MTLLoRA(rank=4, n_heads=3).attach(Net(), TASKS[::-1][:2], seed=0).state_dict()
    assert torch.equal(fewer["first.gate.scores.logits"], logits[[2, 1]]), "a task's start depends on other tasks"
    multi = MultiLoRA(n_loras=3, expert_rank=4).attach(Net(), TASKS, seed=0).state_dict()
    assert not multi["first.v"].any()
    for i in range(3):
        part = slice(4 * i, 4 * i + 4)
        assert 0.4 < multi["first.B"][:, part].abs().max() <= 0.5  # 1 / sqrt(4)
        assert 0.3 < multi["first.A"][part].abs().max() <= 8**-0.5
    assert not torch.equal(multi["first.B"][:, :4], multi["first.B"][:, 4:8])


def test_parameters_are_those_that_the_equations_count() -> None:
    d_in, d_out, r, n, t = 8, 12, 4, 3, len(TASKS)
    counted: dict[Any, int] = {
        MTLLoRA(rank=r, n_heads=n): r * d_in + n * r * d_out + t * r * r + t * n,
        MTLLoRA(rank=r, n_heads=n, task_map="diagonal"): r * d_in + n * r * d_out + t * r + t * n,
        MTLLoRA(rank=r, n_heads=n, task_map="identity"): r * d_in + n * r * d_out + t * n,
        MTLLoRA(rank=r, n_heads=n, gate="uniform"): r * d_in + n * r * d_out + t * r * r,
        MTLLoRA(rank=r, n_heads=1): r * d_in + r * d_out + t * r * r,
        MLoRA(rank=r, n_heads=n): r * d_in + n * r * d_out,
        MultiLoRA(expert_rank=r, n_loras=n): n * (r * d_in + r * d_out + d_out),
        MultiLoRA(expert_rank=r, n_loras=n, scaling=False): n * (r * d_in + r * d_out),
    }
    for method, number in counted.items():
        adapter = method.attach(Net(), TASKS, seed=0)
        assert sum(p.numel() for name, p in adapter.trainable().items() if name.startswith("first")) == number, method


def test_ranks_and_budgets_count_the_larger_factor() -> None:
    assert MTLLoRA().ranks(16) == Ranks(stored=48, active=16)
    assert MLoRA().ranks(16) == Ranks(stored=80, active=16)
    assert MultiLoRA().ranks(16) == Ranks(stored=16, active=16)
    assert MTLLoRA().within(Budget(kind="stored", rank=16), 3).ranks(3) == Ranks(stored=15, active=5)
    assert MultiLoRA().within(Budget(kind="active", rank=19), 3).ranks(3) == Ranks(stored=16, active=16)


def test_a_task_without_examples_adds_nothing_random_of_its_own() -> None:
    found = fitted(MTLLoRA(rank=4), {**toy_data(), TOY_TASKS[1]: []}).adapter
    state = found.state_dict()
    for name, value in state.items():
        if name.endswith("lambda.weight"):
            assert torch.equal(value[1], torch.eye(4).double())
            assert not torch.equal(value[0], value[1])
        if name.endswith("logits"):
            assert not value[1].any()
            assert value[0].any()
    parts = {name: part.tasks for name, part in found.task_parts().items()}
    assert set(parts) == {n for n in state if n.endswith(("lambda.weight", "logits"))}
    assert set(parts.values()) == {(0, 1, 2)}


def test_the_weights_of_heads_are_saved_for_reports() -> None:
    (gates,) = fitted(MTLLoRA(rank=4)).artefacts.values()
    for by_task in gates.values():
        assert list(by_task) == list(TOY_TASKS)
        assert all(len(w) == 3 and sum(w) == pytest.approx(1, abs=1e-4) for w in by_task.values())


def test_a_bf16_base_keeps_float32_parameters_and_stays_near_float32() -> None:
    for method in EVERY:
        outs = {}
        for dtype in (torch.float32, torch.bfloat16):
            net = Net().to(dtype).eval()
            adapter = method.attach(net, TASKS, seed=0)
            perturb(adapter, 0.1)
            for route in (torch.tensor(LABELS), torch.tensor(LABELS)[:, None].expand(4, 3)):
                with adapter.route(route):
                    out = net(inputs().to(dtype))
                    out.float().sum().backward()
            assert out.dtype == dtype
            assert {p.dtype for p in adapter.trainable().values()} == {torch.float32}
            outs[dtype] = out.float().detach()
        assert (outs[torch.float32] - outs[torch.bfloat16]).abs().max() < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MTLLoRA(task_map="none"), "unknown method.task_map 'none'"),
        (lambda: MTLLoRA(gate="embedding"), "unknown method.gate 'embedding'"),
        (lambda: MTLLoRA(n_heads=0), "method.n_heads=0: give 1 or more"),
        (lambda: MTLLoRA(tau=0.0), "method.tau=0.0: a temperature is greater than 0"),
        (lambda: MLoRA(n_heads=0), "method.n_heads=0: give 1 or more"),
        (lambda: MLoRA(head_dropout=1.0), "method.head_dropout=1.0: give a probability"),
        (lambda: MultiLoRA(n_loras=0), "method.n_loras=0: give 1 or more"),
    ],
)
def test_fields_that_make_no_sense_are_refused_in_words(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
