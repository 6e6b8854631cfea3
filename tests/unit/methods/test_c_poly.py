"""C-Poly's Poly part against PEFT's, and the noise of its router."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_net import Net, inputs

from harness.testing.toys import TASKS, ToyTrainer, perturb, toy_data, toy_model
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


@pytest.mark.parametrize("noise", ["example", "task"])
def test_noise_is_drawn_once_per_step_and_layer_for_each_example_or_task(noise: str) -> None:
    net = Net()
    adapter = CPoly(rank=2, noise=noise).attach(net, ["a", "b"], seed=0)
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
    shares = [gate.label_weights for gate in adapter.modules.values()]
    adapter.begin_step("all", 1)
    with adapter.route(torch.tensor([0, 1, 0, 1])):
        weights = [share(adapter.current_route) for share in shares]
    assert all(torch.allclose(w[0], w[2]) == (noise == "task") for w in weights)
    with adapter.route(torch.tensor([0, 1]), torch.tensor([2, 1])):  # the third and the second example of the step
        assert all(
            torch.allclose(share(adapter.current_route), w[[2, 1]]) for share, w in zip(shares, weights, strict=True)
        )
    with adapter.route(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 2, 1]])):  # the same examples packed
        packed = [share(adapter.current_route) for share in shares]
        assert all(torch.allclose(p, w[[2, 2, 1]]) for p, w in zip(packed, weights, strict=True))
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
    labels = torch.zeros(2000, dtype=torch.long)
    draws = []
    for seed in (0, 1):
        net = Net()
        adapter = CPoly(rank=1, variant="poly", targets="first").attach(net, ["a"], seed=seed)
        adapter.begin_step("all", 0)
        net.train()
        with adapter.route(labels):
            net(inputs()[:1].expand(2000, -1, -1))
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


@pytest.mark.parametrize("variant", ["c_poly", "simple"])
def test_a_task_without_training_examples_gets_the_common_skills_alone(variant: str) -> None:
    """Its own skills have random factors A, which a sum of factors would combine with the others' trained B."""
    method = CPoly(rank=2, variant=variant, n_specific=2)
    model = toy_model()
    tasks = [*TASKS, "empty"]
    adapter = method.attach(model, tasks, seed=0)
    trainer = ToyTrainer(method=method, adapter=adapter, model=model, data={**toy_data(), "empty": []})
    method.fit(adapter, trainer, tasks)
    before = {name: (lora.b @ lora.a) for name, lora in adapter.fold("empty").items()}
    trained = {name: (lora.b @ lora.a) for name, lora in adapter.fold(TASKS[0]).items()}
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.a[-4:] += 100.0  # its own two skills of rank 2
    after = {name: (lora.b @ lora.a) for name, lora in adapter.fold("empty").items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(bool(delta.any()) for delta in before.values())
    assert any(not torch.equal(before[name], trained[name]) for name in before)


def test_splits_have_their_own_weights_of_common_skills_and_the_same_weights_of_specific_ones() -> None:
    method = CPoly(rank=2, n_splits=4, n_specific=2, n_common=3)
    adapter = method.attach(toy_model(), list(TASKS), seed=0)
    perturb(adapter)
    gate = next(iter(adapter.modules.values()))
    weights = gate.task_weights().view(3, 4, 3 + 6)
    assert torch.allclose(weights[:, :, :3].sum(-1), torch.ones(3, 4, dtype=weights.dtype))
    assert torch.equal(weights[:, 0, 3:], weights[:, 3, 3:])
    assert not torch.equal(weights[:, 0, :3], weights[:, 3, :3])


def test_the_specific_skills_of_a_task_initially_share_the_weight_of_one() -> None:
    adapter = CPoly(rank=2, n_specific=2).attach(toy_model(), ["a", "b"], seed=0)
    specific = next(iter(adapter.modules.values())).specific
    assert specific.tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]


@pytest.mark.parametrize("variant", ["c_poly", "simple", "poly"])
@pytest.mark.parametrize("splits", [1, 4])
def test_layers_with_several_specific_skills_and_splits_are_the_sum_over_skills_one_by_one(
    variant: str, splits: int
) -> None:
    net = Net()
    adapter = CPoly(rank=2, n_splits=splits, n_specific=2, variant=variant, targets="first").attach(
        net, ["a", "b"], seed=0
    )
    perturb(adapter)
    net.eval()
    (layer,) = adapter.layers.values()
    x = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(0), dtype=layer.a.dtype)
    for task in (0, 1):
        g = layer.gate.task_weights()[task].view(splits, -1)
        skills = [(layer.a[2 * k : 2 * k + 2], layer.b[:, 2 * k : 2 * k + 2]) for k in range(g.shape[1])]
        width, out = layer.in_features // splits, layer.out_features // splits
        z = sum(
            g[q, k] * (a[:, q * width : (q + 1) * width] @ x[task, q * width : (q + 1) * width])
            for q in range(splits)
            for k, (a, _) in enumerate(skills)
        )
        rows = [
            sum(g[q, k] * (b[q * out : (q + 1) * out] @ z) for k, (_, b) in enumerate(skills)) for q in range(splits)
        ]
        expected = layer.base(x[task]) + layer.scale * torch.cat(rows)
        with adapter.route(torch.tensor([task])):
            found = layer(x[task][None, None])[0, 0]
        assert (found - expected).abs().max() < 1e-10
