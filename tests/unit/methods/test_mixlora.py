"""MixLoRA against explicit loops over tokens and experts, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_steps import CLOSE, PACKED, PADDED, gradients, make_sequences, make_steps
from toy_steps import TASKS as TOY_TASKS

from harness.errors import ModelError, NotFoldable, UsageError
from harness.method import Budget
from harness.testing.toys import TASKS, perturb, toy_model
from harness.training.attention import checkpoint_activations
from harness.training.task_gradients import TaskGradients
from methods.layers.mixture_blocks import last_of_block
from methods.lora_all import LoRAAll
from methods.mixlora import MixLoRA

pytestmark = pytest.mark.numeric

METHOD = MixLoRA(n_experts=4, expert_rank=2, top_k=2, balance=0.5)
MLP = "model.layers.1.mlp"


def attached(method: Any) -> tuple[Any, Any]:
    model: Any = toy_model()
    adapter = method.attach(model, list(TASKS), seed=0)
    perturb(adapter, 0.4)
    return model, adapter


def low_rank(values: Mapping[str, Tensor], layer: str, expert: int, rank: int) -> Tensor:
    rows = slice(expert * rank, (expert + 1) * rank)
    return values[f"{MLP}.{layer}.B"][:, rows] @ values[f"{MLP}.{layer}.A"][rows]


def block_by_hand(method: MixLoRA, values: Mapping[str, Tensor], base: Mapping[str, Tensor], x: Tensor) -> Any:
    """The output of the block for one token (d,), its probabilities and the experts that it uses."""
    scale = method.alpha / method.expert_rank
    scores = [values[f"{MLP}.gate.weight"][e] @ x for e in range(method.n_experts)]
    p = [s.exp() / sum(t.exp() for t in scores) for s in scores]
    used = sorted(range(method.n_experts), key=lambda e: -float(p[e].detach()))[: method.top_k]
    out = torch.zeros_like(x)
    for e in used:
        gate, up, down = (
            base[layer] + scale * low_rank(values, layer, e, method.expert_rank)
            for layer in ("gate_proj", "up_proj", "down_proj")
        )
        hidden = gate @ x
        out = out + p[e] / sum(p[i] for i in used) * (down @ (hidden * torch.sigmoid(hidden) * (up @ x)))
    return out, p, used


@pytest.mark.parametrize("method", [METHOD, MixLoRA(n_experts=3, expert_rank=3, top_k=1, balance=2.0)], ids=["2", "1"])
def test_a_block_its_balance_and_every_gradient_are_those_of_a_loop(method: MixLoRA) -> None:
    model, adapter = attached(method)
    model.train()
    base = {name: getattr(model.get_submodule(MLP), name).base.weight for name in ("gate_proj", "up_proj", "down_proj")}
    state = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, base["gate_proj"].shape[1], dtype=torch.float64, generator=state)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=state)
    with adapter.route(torch.tensor([0, 1])):
        out = model.get_submodule(MLP)(x)
        ((out * direction).sum() + adapter.penalty()).backward()
    own = {name: p for name, p in adapter.trainable().items() if name.startswith(f"{MLP}.")}
    values = {name: p.detach().clone().requires_grad_() for name, p in own.items()}
    loss, expected = torch.zeros((), dtype=torch.float64), []
    for sequence, towards in zip(x, direction, strict=True):
        found = [block_by_hand(method, values, base, token) for token in sequence]
        expected.append(torch.stack([o for o, _, _ in found]))
        loss = loss + (expected[-1] * towards).sum()
        for e in range(method.n_experts):
            share = sum(e in used for _, _, used in found) / len(found)
            mean = sum(p[e] for _, p, _ in found) / len(found)
            loss = loss + method.balance * method.n_experts * share * mean
    loss.backward()
    assert torch.allclose(out, torch.stack(expected), rtol=1e-9, atol=1e-10)
    assert len(own) == 7
    for name, parameter in own.items():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, values[name].grad, rtol=1e-7, atol=1e-9), name  # type: ignore[arg-type]
        assert parameter.grad.abs().max() > 1e-6, name


def test_one_expert_is_a_plain_lora_bit_for_bit(toy_llama: Callable[..., Any]) -> None:
    sequences = make_sequences()
    one = make_steps(toy_llama(), MixLoRA(n_experts=1, expert_rank=4, top_k=1, balance=0.0), PACKED)
    plain = make_steps(toy_llama(), LoRAAll(rank=4), PACKED)
    state = plain.adapter.state_dict()
    gates = {n: v for n, v in one.adapter.state_dict().items() if n not in state}
    assert set(gates) == {"model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate.weight"}
    one.adapter.load_state_dict({**gates, **state})
    (losses, mine), (expected, theirs) = gradients(one, sequences), gradients(plain, sequences)
    assert losses == expected
    for name, gradient in theirs.items():
        other = mine[name]
        assert gradient is not None
        assert other is not None
        assert torch.equal(gradient, other), name


def test_micro_batches_packing_and_checkpointing_do_not_change_a_step(toy_llama: Callable[..., Any]) -> None:
    sequences = make_sequences(n=7)
    whole = gradients(make_steps(toy_llama(), METHOD, PACKED, micro_tokens=1000), sequences)
    others = [
        gradients(make_steps(toy_llama(), METHOD, layout, micro_tokens=micro), sequences)
        for layout, micro in ((PACKED, 50), (PADDED, 1000))
    ]
    steps = make_steps(toy_llama(), METHOD, PACKED, micro_tokens=1000)
    checkpoint_activations(steps.loaded.model, True)
    others.append(gradients(steps, sequences))
    for other in others:
        assert other[0] == pytest.approx(whole[0], rel=CLOSE)
        for name, gradient in whole[1].items():
            assert torch.allclose(gradient, other[1][name], rtol=CLOSE, atol=CLOSE), name
    assert max(float(g.abs().max()) for n, g in whole[1].items() if g is not None and "gate.weight" in n) > 1e-6


def test_the_gradients_of_tasks_are_those_of_their_own_sequences(toy_llama: Callable[..., Any]) -> None:
    """The rows of a block's products are pairs of a token and an expert."""
    sequences = make_sequences(n=7)
    method = MixLoRA(n_experts=4, expert_rank=2, top_k=2, balance=0.0)
    found: list[TaskGradients] = []
    gradients(make_steps(toy_llama(), method, PACKED, loss="task"), sequences, use=found.append)
    for i, task in enumerate(TOY_TASKS):
        own = [s for s in sequences if s.task == task]
        alone = gradients(make_steps(toy_llama(), method, PACKED, loss="task"), own)[1]
        for name, gradient in alone.items():
            assert gradient is not None
            assert torch.allclose(3 * found[0].by_name[name][i], gradient, rtol=CLOSE, atol=CLOSE), (task, name)


def test_layers_outside_mlp_blocks_have_one_lora() -> None:
    _, adapter = attached(METHOD)
    assert adapter.trainable()["model.layers.0.self_attn.q_proj.A"].shape[0] == METHOD.expert_rank
    assert adapter.trainable()[f"{MLP}.up_proj.A"].shape[0] == METHOD.n_experts * METHOD.expert_rank
    with pytest.raises(NotFoldable, match="_proj weighs the experts of each token"):
        adapter.fold(TASKS[0])


def test_a_part_of_a_block_cannot_be_adapted_and_a_model_needs_a_block() -> None:
    with pytest.raises(UsageError, match=r"leaves out .*\.mlp\.up_proj, and adapts other layers of .*\.mlp"):
        MixLoRA(targets="gate_proj,down_proj").attach(toy_model(), list(TASKS), seed=0)
    adapter = MixLoRA(targets="gate_proj,up_proj,down_proj").attach(toy_model(), list(TASKS), seed=0)
    assert {name.split(".")[-1] for name in adapter.layers} == {"gate_proj", "up_proj", "down_proj"}

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"only": nn.Linear(4, 4)})])

    with pytest.raises(ModelError, match="Bare has no MLP block of two or three linear layers"):
        MixLoRA().attach(Bare(), list(TASKS), seed=0)


@pytest.mark.parametrize(
    ("widths", "last"),
    [
        ({"gate": (4, 9), "up": (4, 9), "down": (9, 4)}, "down"),
        ({"gate_up": (4, 18), "down": (9, 4)}, "down"),
        ({"fc1": (4, 16), "fc2": (16, 4)}, "fc2"),
        ({"q": (4, 4), "k": (4, 2), "v": (4, 2), "o": (4, 4)}, None),
        ({"q": (4, 6), "k": (4, 6), "v": (4, 6), "o": (6, 4)}, None),
        ({"qkv": (4, 12), "o": (4, 4)}, None),
        ({"only": (4, 4)}, None),
    ],
    ids=str,
)
def test_blocks_are_recognised_by_the_widths_of_their_layers(widths: dict[str, Any], last: str | None) -> None:
    layers = {name: nn.Linear(*shape) for name, shape in widths.items()}
    assert last_of_block(layers) is (None if last is None else layers[last])


def test_budgets_and_settings() -> None:
    assert METHOD.within(Budget(kind="active", rank=16), 3).expert_rank == 8
    assert METHOD.ranks(3).active == 4
    with pytest.raises(UsageError, match=r"method\.n_experts=1: give method\.top_k=2 or more"):
        MixLoRA(n_experts=1)
    with pytest.raises(UsageError, match=r"method\.balance=-1"):
        MixLoRA(balance=-1.0)
