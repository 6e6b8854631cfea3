"""Align-LoRA: its loss against independent computations, and what the loss depends on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from toy_net import TASKS, Net
from toy_steps import PACKED, PADDED, make_sequences, make_steps
from toy_steps import TASKS as STEP_TASKS
from toy_steps import gradients as step_gradients

from harness.data.encoding import Encoded
from harness.errors import ModelError, UsageError
from harness.method import Ranks
from harness.testing.toys import TASKS as TOY_TASKS
from harness.testing.toys import ToyTrainer, perturb, toy_data, toy_model
from methods.align_lora import AlignLoRA
from methods.layers.alignment import BANDWIDTHS, mean_over_pairs, squared_mmd, symmetric_kl, token_groups
from methods.lora_all import LoRAAll

pytestmark = pytest.mark.numeric

LABELS = [2, 0, 2, 1, 0]
LENGTHS = [4, 2, 3, 1, 3]  # The only sequence of task 1 has one token, which is too few for a variance.
REAL = torch.arange(4) < torch.tensor(LENGTHS)[:, None]


def sequences() -> Tensor:
    """Five sequences of four tokens, of which ``REAL`` says what is padding."""
    return torch.randn(5, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def attached(method: AlignLoRA) -> tuple[Any, Any]:
    net = Net().train()
    adapter = method.attach(net, TASKS, seed=0)
    perturb(adapter)
    return net, adapter


def penalty_of(net: Any, adapter: Any, x: Tensor, labels: Tensor, real: Tensor, examples: Any = None) -> Tensor:
    with adapter.route(labels, examples):
        adapter.count_tokens([real])
        net(x)
        result: Tensor = adapter.penalty()
        return result


def independent(divergence: str, one: Tensor, other: Tensor) -> Tensor:
    """The divergence of two sets of features (N, r), by torch's distributions or by loops."""
    if divergence == "kl":
        p, q = (Independent(Normal(z.mean(0), (z.var(0, unbiased=True) + 1e-8).sqrt()), 1) for z in (one, other))
        return (kl_divergence(p, q) + kl_divergence(q, p)) / 2

    def kernel(xs: Tensor, ys: Tensor) -> Tensor:
        values = [torch.exp(-(x - y).dot(x - y) / (2 * h)) for x in xs for y in ys for h in BANDWIDTHS]
        return torch.stack(values).sum() / (len(xs) * len(ys))

    return kernel(one, one) + kernel(other, other) - 2 * kernel(one, other)


@pytest.mark.parametrize("divergence", ["kl", "mmd"])
def test_the_penalty_and_its_gradients_are_those_of_the_equation_over_real_tokens(divergence: str) -> None:
    method = AlignLoRA(rank=3, divergence=divergence, weight=0.7)
    net, adapter = attached(method)
    ours = penalty_of(net, adapter, sequences(), torch.tensor(LABELS), REAL)
    ours.backward()
    values = {n: p.detach().clone().requires_grad_() for n, p in adapter.trainable().items()}
    x = sequences()
    hidden = torch.tanh(net.first.base(x) + 32 / 3 * (x @ values["first.A"].T @ values["first.B"].T))
    layers = []
    for z in (x @ values["first.A"].T, hidden @ values["second.A"].T):
        of = {t: torch.cat([z[i, : LENGTHS[i]] for i in range(5) if LABELS[i] == t]) for t in (0, 2)}
        layers.append(independent(divergence, of[0], of[2]))
    expected = 0.7 * 5 * (layers[0] + layers[1]) / 2
    expected.backward()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-10)
    assert ours.item() > 1e-3
    for name, parameter in adapter.trainable().items():
        theirs = values[name].grad
        if name == "second.B":  # Its product is not part of any feature.
            assert parameter.grad is None
            assert theirs is None
        else:
            assert theirs is not None
            assert theirs.any()
            assert (parameter.grad - theirs).abs().max() < 1e-9 * max(1.0, float(theirs.abs().max())), name


def test_the_mean_is_over_pairs_of_tasks() -> None:
    draw = torch.Generator().manual_seed(4)
    mean, variance = (torch.rand(2, 4, 5, generator=draw, dtype=torch.float64) + 0.1 for _ in range(2))
    pairs = []
    for layer in range(2):
        for i, j in itertools.combinations(range(4), 2):
            p, q = (Independent(Normal(mean[layer, k], (variance[layer, k] + 1e-8).sqrt()), 1) for k in (i, j))
            pairs.append((kl_divergence(p, q) + kl_divergence(q, p)) / 2)
    ours = mean_over_pairs(symmetric_kl(mean, variance))
    assert ours.item() == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-10)


def test_equal_tasks_have_no_divergence() -> None:
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = torch.eye(2).double().repeat_interleave(6, 0) / 6
    assert squared_mmd(torch.cat([z, z]), share).abs().max() < 1e-12
    moments = z.mean(0).expand(2, 3), z.var(0).expand(2, 3)
    assert symmetric_kl(*moments).abs().max() < 1e-12


@pytest.mark.parametrize("divergence", ["kl", "mmd"])
def test_packing_padding_and_order_change_nothing(divergence: str) -> None:
    net, adapter = attached(AlignLoRA(rank=3, divergence=divergence))
    x, labels = sequences(), torch.tensor(LABELS)
    padded = penalty_of(net, adapter, x, labels, REAL).item()
    filling = torch.ones(1, 3, 8, dtype=torch.float64)
    packed = torch.cat([x[REAL][None], filling], 1)
    examples = torch.arange(5).repeat_interleave(torch.tensor(LENGTHS))
    tokens = torch.cat([labels[examples], labels[-1:].expand(3)])[None]
    owner = torch.cat([examples, examples[-1:].expand(3)])[None]
    real = (torch.arange(16) < 13)[None]
    assert penalty_of(net, adapter, packed, tokens, real, owner).item() == pytest.approx(padded, rel=1e-10)
    order = torch.tensor([3, 1, 4, 0, 2])
    again = penalty_of(net, adapter, x[order], labels[order], REAL[order]).item()
    assert again == pytest.approx(padded, rel=1e-10)
    without = penalty_of(net, adapter, x, labels, torch.ones_like(REAL)).item()
    assert without != pytest.approx(padded, rel=1e-3)


def similar_sequences() -> list[Encoded]:
    """Nine sequences of 12 to 14 tokens: as their lengths are similar, padding keeps them in one micro-batch."""
    draw = torch.Generator().manual_seed(1)
    tokens = [torch.randint(1, 97, (12 + i % 3,), generator=draw).tolist() for i in range(9)]
    return [
        Encoded(task=STEP_TASKS[i % 3], prompt=tuple(t[:9]), target=tuple(t[9:]), truncated=False)
        for i, t in enumerate(tokens)
    ]


def test_the_engine_packs_and_pads_to_the_same_gradients(toy_llama: Callable[..., Any]) -> None:
    (packed, padded, plain) = (
        step_gradients(make_steps(toy_llama(), method, layout, micro_tokens=2048), similar_sequences())
        for method, layout in ((AlignLoRA(rank=4), PACKED), (AlignLoRA(rank=4), PADDED), (LoRAAll(rank=4), PACKED))
    )
    assert packed[0][0] == pytest.approx(padded[0][0], abs=1e-6)
    assert packed[0][0] > plain[0][0] + 1e-3, "the loss of the step has no alignment"
    for name, gradient in packed[1].items():
        other = padded[1][name]
        assert gradient is not None
        assert other is not None
        assert (gradient - other).abs().max() < 1e-6, name


def test_a_step_has_the_mean_over_its_sequences_of_the_losses_of_their_micro_batches(
    toy_llama: Callable[..., Any],
) -> None:
    steps = make_steps(toy_llama(), AlignLoRA(rank=4), PADDED, micro_tokens=120)
    plain = make_steps(toy_llama(), LoRAAll(rank=4), PADDED, micro_tokens=120)
    sequences, adapter = make_sequences(), steps.adapter
    penalties: list[Tensor] = []
    counted = adapter.penalty

    def penalty() -> Tensor:
        penalties.append(counted())
        return penalties[-1]

    adapter.penalty = penalty  # type: ignore[method-assign]
    loss = step_gradients(steps, sequences)[0][0]
    assert len(penalties) > 1
    without = step_gradients(plain, sequences)[0][0]
    assert loss - without == pytest.approx(sum(p.item() for p in penalties) / len(sequences), rel=1e-6)


def test_without_two_tasks_or_outside_training_there_is_no_penalty() -> None:
    net, adapter = attached(AlignLoRA(rank=3))
    one_task = penalty_of(net, adapter, sequences(), torch.zeros(5, dtype=torch.long), REAL)
    assert one_task == 0
    assert not one_task.requires_grad
    first = (torch.arange(4) == 0).expand(5, 4)
    for labels, has_penalty in (([0, 1, 2, 0, 2], True), ([0, 1, 2, 2, 2], False)):
        # Each sequence has one real token, and a task needs two of them.
        assert (penalty_of(net, adapter, sequences(), torch.tensor(labels), first) > 0) == has_penalty
    with torch.no_grad():
        assert penalty_of(net, adapter, sequences(), torch.tensor(LABELS), REAL) == 0
    assert penalty_of(net.eval(), adapter, sequences(), torch.tensor(LABELS), REAL) == 0
    assert not adapter.alignment.recorded


def test_a_limit_of_tokens_takes_them_evenly_from_the_tokens_of_a_task() -> None:
    groups = token_groups(torch.tensor([0, 1]), 9, None, 3)
    assert groups is not None
    assert groups.index.tolist() == [0, 4, 8, 9, 13, 17]
    assert groups.own.argmax(1).tolist() == [0, 0, 0, 1, 1, 1]
    everything = token_groups(torch.tensor([0, 1]), 9, None, None)
    assert everything is not None
    assert everything.index.tolist() == list(range(18))


def fitted(method: Any) -> ToyTrainer:
    model = toy_model()
    adapter = method.attach(model, list(TOY_TASKS), seed=0)
    trainer = ToyTrainer(method=method, adapter=adapter, model=model, data=toy_data(), steps=8)
    method.fit(adapter, trainer, list(TOY_TASKS))
    return trainer


def test_without_weight_it_trains_as_lora_all_bit_for_bit() -> None:
    ours, plain = (fitted(m).adapter.state_dict() for m in (AlignLoRA(rank=4, weight=0.0), LoRAAll(rank=4)))
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.long
@pytest.mark.parametrize("divergence", ["kl", "mmd"])
def test_training_with_weight_aligns_the_tasks(divergence: str) -> None:
    def after(weight: float) -> float:
        found = fitted(AlignLoRA(rank=4, divergence=divergence, weight=weight)).adapter
        model: Any = found.model  # type: ignore[attr-defined]
        model.train()
        tokens = torch.randint(1, 60, (6, 7), generator=torch.Generator().manual_seed(0))
        with found.route(torch.tensor([0, 1, 2, 0, 1, 2])):
            model(input_ids=tokens, use_cache=False)
            return float(found.penalty()) / weight

    assert after(5.0) < 0.9 * after(1e-9)


def test_what_the_loss_was_computed_from_is_saved_for_reports() -> None:
    artefact = fitted(AlignLoRA(rank=4)).artefacts["alignment"]
    assert artefact["micro_batches"] == 8
    assert 2 <= artefact["tasks_per_micro_batch"] <= 3
    assert artefact["mean_loss"] > 0


def test_ranks_are_those_of_one_lora() -> None:
    assert AlignLoRA().ranks(16) == Ranks(stored=16, active=16)


def test_a_model_with_an_encoder_and_a_decoder_is_refused_in_words() -> None:
    net: Any = Net()
    net.config = type("Config", (), {"is_encoder_decoder": True})()
    with pytest.raises(ModelError, match=r"has an encoder and a decoder: use a decoder-only --model"):
        AlignLoRA().attach(net, TASKS, seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AlignLoRA(divergence="js"), "unknown method.divergence 'js'"),
        (lambda: AlignLoRA(weight=-1.0), "method.weight=-1.0: give 0 or more"),
        (lambda: AlignLoRA(mmd_tokens=1), "method.mmd_tokens=1: a distribution needs at least 2 tokens"),
    ],
)
def test_fields_that_make_no_sense_are_refused_in_words(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
