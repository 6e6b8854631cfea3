"""C-Poly's Poly part against PEFT's, and the noise of its router."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_net import Net, inputs

from harness.testing.toys import TASKS, perturb, toy_model
from methods.c_poly import CPoly

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("splits", [1, 4], ids=["poly", "mhr"])
def test_poly_is_peft_s_poly_in_outputs_and_gradients(splits: int) -> None:
    from peft import PolyConfig, get_peft_model

    ours, theirs = toy_model(), toy_model()
    adapter = CPoly(variant="poly", n_common=4, rank=2, n_splits=splits).attach(ours, list(TASKS), seed=0)
    perturb(adapter)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = PolyConfig(r=2, n_tasks=3, n_skills=4, n_splits=splits, target_modules=names, task_type="CAUSAL_LM")
    peft: Any = get_peft_model(theirs, config, autocast_adapter_dtype=False).eval()
    twins = dict(peft.named_parameters())
    mine = adapter.trainable()

    def twin(name: str) -> str:
        module, _, factor = name.removesuffix(".gate.assignment").rpartition(".")
        if name.endswith("assignment"):
            return f"base_model.model.{module}.{factor}.poly_router.default.module_logits"
        return f"base_model.model.{module}.poly_lora_{factor}.default"

    def as_theirs(name: str, value: torch.Tensor) -> torch.Tensor:
        """Stacked skills as PEFT keeps them: (splits, skills, d / splits, r) or (splits, skills, r, d / splits)."""
        if name.endswith(".A"):
            return value.view(4, 2, splits, -1).permute(2, 0, 3, 1)
        return value.view(splits, -1, 4, 2).permute(0, 2, 3, 1) if name.endswith(".B") else value

    with torch.no_grad():
        for name, parameter in mine.items():
            twins[twin(name)].copy_(as_theirs(name, parameter))
    tokens, labels = torch.arange(1, 22).view(3, 7), torch.tensor([2, 0, 2])
    with adapter.route(labels):
        out = ours(input_ids=tokens, use_cache=False).logits
        out.logsumexp(-1).sum().backward()
    expected = peft(input_ids=tokens, task_ids=labels, use_cache=False).logits
    expected.logsumexp(-1).sum().backward()
    assert (out - expected).abs().max() < 1e-6
    for name, parameter in mine.items():
        assert parameter.grad is not None
        assert (as_theirs(name, parameter.grad) - twins[twin(name)].grad).abs().max() < 1e-5, name


def test_noise_is_drawn_once_per_step_layer_and_task() -> None:
    net = Net()
    adapter = CPoly(rank=2).attach(net, ["a", "b"], seed=0)
    perturb(adapter)
    net.train()
    x = inputs()

    def out(stage: str, step: int, labels: list[int]) -> torch.Tensor:
        adapter.begin_step(stage, step)
        with adapter.route(torch.tensor(labels)):
            return net(x[: len(labels)]).detach()

    def distance(one: torch.Tensor, other: torch.Tensor) -> float:
        return (one - other).abs().max().item()

    whole = out("all", 1, [0, 1, 0, 1])
    assert distance(out("all", 1, [0, 1]), whole[:2]) < 1e-12  # another micro-batch of the same step
    assert distance(out("all", 2, [0, 1]), whole[:2]) > 1e-6
    assert distance(out("more", 1, [0, 1]), whole[:2]) > 1e-6
    assert torch.equal(out("all", 1, [0, 1, 0, 1]), whole)  # in equal shapes, bit for bit
    noise = {key: gate.noise for key, gate in adapter.modules.items()}
    assert not torch.equal(noise["first.gate"][0], noise["first.gate"][1])
    assert not torch.equal(noise["first.gate"], noise["second.gate"])
    net.eval()
    assert torch.equal(out("all", 1, [0, 1]), out("all", 2, [0, 1]))


def test_noise_is_logistic_and_depends_on_the_run_s_seed() -> None:
    tasks = [f"t{i}" for i in range(2000)]
    draws = []
    for seed in (0, 1):
        net = Net()
        adapter = CPoly(rank=1, variant="poly", targets="first").attach(net, tasks, seed=seed)
        adapter.begin_step("all", 0)
        net.train()
        with adapter.route(torch.tensor([0])):
            net(inputs()[:1])
        draws.append(adapter.modules["first.gate"].noise)
    assert not torch.equal(*draws)
    # A standard logistic variable: mean 0, variance pi^2 / 3, quartile log 3.
    noise = draws[0].flatten()
    assert noise.mean().item() == pytest.approx(0, abs=0.1)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 3, rel=0.1)
    assert noise.quantile(0.75).item() == pytest.approx(1.0986, abs=0.1)


def test_training_before_a_step_was_announced_is_an_error() -> None:
    net = Net()
    adapter = CPoly().attach(net, ["a"], seed=0)
    net.train()
    with adapter.route(torch.tensor([0])), pytest.raises(RuntimeError, match="begin_step"):
        net(inputs())
