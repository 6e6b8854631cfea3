"""A step has the same loss and gradients however its sequences are packed, padded and divided into micro-batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from toy_steps import CLOSE, PACKED, PADDED, ROUTES, TASKS, gradients, make_sequences, make_steps

from harness.data.encoding import Encoded
from harness.errors import TrainingError
from harness.registry import method_class
from harness.runtime.distributed import ProcessGroup
from harness.training.attention import checkpoint_activations
from harness.training.batch import loss_weights, total_weight, weigh
from harness.training.packing import Layout
from harness.training.step import StepRunner, learning_rate

pytestmark = pytest.mark.numeric


class AskedToStop(ProcessGroup):
    """Two ranks, of which the other one has nothing to add but that it was asked to stop."""

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor[-1] += 1  # The last value of a step's sums is the number of ranks that were asked to stop.
        return tensor

    def all_reduce_gradients(self, parameters: Any) -> None:
        return


LOSSES = ("token", "example", "task")


def assert_same(left: Any, right: Any, tolerance: float) -> None:
    assert left[0] == pytest.approx(right[0], rel=tolerance, abs=tolerance)
    assert left[1].keys() == right[1].keys()
    largest = 0.0
    for name, gradient in left[1].items():
        other = right[1][name]
        assert (gradient is None) == (other is None), name
        if gradient is not None and other is not None:
            assert torch.allclose(gradient, other, rtol=tolerance, atol=tolerance), name
            largest = max(largest, float(gradient.abs().max()))
    assert largest > 1e-4  # or else nothing was compared


def reference(steps: StepRunner, sequences: Sequence[Encoded], kind: str) -> float:
    """The loss by the design's words, a sequence at a time, in plain Python."""
    sums, weights = 0.0, 0.0
    per_task = {t: sum(len(r.target) for r in sequences if r.task == t) for t in TASKS}
    for one in sequences:
        ids = torch.tensor([[*one.prompt, *one.target]])
        with torch.no_grad(), steps.adapter.route(torch.tensor([TASKS.index(one.task)])):
            logits = steps.loaded.model(input_ids=ids).logits[0].log_softmax(-1)
        nats = [-float(logits[len(one.prompt) - 1 + k, token]) for k, token in enumerate(one.target)]
        weight = {"token": 1.0, "example": 1 / len(one.target), "task": 1 / per_task[one.task]}[kind]
        sums += weight * sum(nats)
        weights += weight * len(nats)
    return sums / weights


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(
    "name", ["lora_all", "lora_single", "cgc_lora", "c_poly", "moe_lora", "moa", "mtl_lora", "multi_lora"]
)
def test_packed_sequences_give_the_loss_and_gradients_of_padded_ones(
    toy_llama: Callable[..., Any], name: str, kind: str
) -> None:
    sequences, method = make_sequences(), method_class(name)()
    found = [
        gradients(make_steps(toy_llama(), method, layout, loss=kind, micro_tokens=micro), sequences)
        for layout, micro in ((PACKED, 1000), (PACKED, 70), (PADDED, 1000), (PADDED, 16))
    ]
    for other in found[1:]:
        assert_same(found[0], other, CLOSE)


@pytest.mark.long
@pytest.mark.parametrize("kind", LOSSES)
def test_the_loss_is_what_the_design_says_of_its_weighting(toy_llama: Callable[..., Any], kind: str) -> None:
    sequences = make_sequences()
    steps = make_steps(toy_llama(), method_class("cgc_lora")(), PACKED, loss=kind)
    expected = {k: reference(steps, sequences, k) for k in LOSSES}
    assert gradients(steps, sequences)[0][0] == pytest.approx(expected[kind], abs=CLOSE)
    assert len({round(loss, 6) for loss in expected.values()}) == 3
    weights = loss_weights(sequences, kind)
    assert sum(w.weight * len(w.sequence.target) for w in weigh(sequences, kind, ROUTES)) == pytest.approx(1.0)
    assert total_weight(sequences, weights) == pytest.approx(
        {"token": sum(len(r.target) for r in sequences), "example": 11, "task": 3}[kind]
    )


def test_filling_a_packed_row_changes_nothing(toy_llama: Callable[..., Any]) -> None:
    sequences, found = make_sequences(), []
    for name in ("cgc_lora", "moa"):
        for multiple in (1, 128):
            layout = Layout(packed=True, multiple=multiple)
            found.append(gradients(make_steps(toy_llama(), method_class(name)(), layout, micro_tokens=1000), sequences))
        assert_same(found[-1], found[-2], CLOSE)


def test_gradient_checkpointing_changes_no_gradient_and_leaves_no_hook(toy_llama: Callable[..., Any]) -> None:
    sequences, method = make_sequences(), method_class("cgc_lora")()
    plain = gradients(make_steps(toy_llama(), method, PACKED), sequences)
    steps = make_steps(toy_llama(), method, PACKED)
    model = steps.loaded.model
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    before = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    checkpoint_activations(model, True)
    again = gradients(steps, sequences)
    checkpoint_activations(model, False)
    assert_same(plain, again, CLOSE)
    n_micro = len(PACKED.split([len(r) for r in sequences], steps.division.micro_tokens))
    assert len(calls) == 2 * n_micro  # each forward was made a second time
    assert {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()} == before
    calls.clear()
    gradients(steps, sequences)
    assert len(calls) == 1


def test_out_of_memory_halves_the_micro_batches_and_repeats_the_step_with_the_same_result(
    toy_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences, method = make_sequences(), method_class("cgc_lora")()
    whole = make_steps(toy_llama(), method, PACKED, micro_tokens=1000)
    small = make_steps(toy_llama(), method, PACKED, micro_tokens=1000)
    forward, sizes = type(small.loaded.model).forward, []

    def cramped(self: nn.Module, **inputs: Any) -> Any:
        sizes.append(inputs["input_ids"].numel())
        if sizes[-1] > 120:
            raise torch.OutOfMemoryError("no room")
        return forward(self, **inputs)

    expected = whole.step(0, sequences, ROUTES)
    monkeypatch.setattr(type(small.loaded.model), "forward", cramped)
    result = small.step(0, sequences, ROUTES)
    assert sizes[0] > 120 >= max(sizes[-3:])
    assert small.division.micro_tokens <= 120
    assert result.loss == pytest.approx(expected.loss, abs=CLOSE)
    assert result.by_task == pytest.approx(expected.by_task, abs=CLOSE)
    for name, parameter in small.stage.parameters.items():
        assert torch.allclose(parameter, whole.stage.parameters[name], atol=CLOSE), name
    halved = small.division.micro_tokens
    small.step(1, sequences, ROUTES)
    assert small.division.micro_tokens == halved


def test_a_single_sequence_without_room_is_an_error_that_says_what_to_do(
    toy_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = make_steps(toy_llama(), method_class("lora_all")(), PACKED)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(type(steps.loaded.model), "forward", full)
    with pytest.raises(TrainingError, match=r"single sequence.*train\.max_length"):
        steps.step(0, make_sequences(), ROUTES)


def test_a_gradient_that_overflows_in_fp16_skips_a_step_and_lowers_the_scale(
    toy_llama: Callable[..., Any],
) -> None:
    steps = make_steps(toy_llama().to(torch.float16), method_class("lora_all")(), PACKED)
    steps.scaler.load_state_dict({**steps.scaler.state_dict(), "scale": 2.0**40})
    before = {n: p.detach().clone() for n, p in steps.stage.parameters.items()}
    steps.step(0, make_sequences(), ROUTES)
    assert steps.scaler.get_scale() == 2.0**39
    assert all(torch.equal(p, before[n]) for n, p in steps.stage.parameters.items())
    steps.scaler.load_state_dict({**steps.scaler.state_dict(), "scale": 128.0})
    steps.step(1, make_sequences(), ROUTES)
    assert not all(torch.equal(p, before[n]) for n, p in steps.stage.parameters.items())


def test_a_step_stops_if_another_rank_was_asked_to_stop(toy_llama: Callable[..., Any]) -> None:
    steps = make_steps(toy_llama(num_hidden_layers=1), method_class("lora_all")(), PACKED)
    assert not steps.step(0, make_sequences(3), ROUTES).stop
    steps.processes = AskedToStop(rank=0, world_size=2)
    assert steps.step(1, make_sequences(3), ROUTES).stop


def test_the_learning_rate_rises_linearly_then_falls_to_almost_nothing() -> None:
    rates = [learning_rate(i, 100, 1.0, 0.1) for i in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(1 / 90)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert all(learning_rate(i, 3, 1.0, 0.0) > 0 for i in range(3))
