"""The load balance of token gates is part of a step's loss, however the step is divided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from toy_steps import CLOSE, PACKED, PADDED, gradients, make_sequences, make_steps

from harness.method import AdapterMethod
from harness.training.attention import checkpoint_activations
from harness.training.packing import Layout
from methods.adamole import AdaMoLE
from methods.lora_moe import LoRAMoE
from methods.mola import MoLA

pytestmark = pytest.mark.numeric

BALANCED: list[AdapterMethod] = [LoRAMoE(balance=2.0), MoLA(balance=2.0), AdaMoLE(balance=2.0)]
IDS = ["lora_moe", "mola", "adamole"]


def assert_same(one: Any, other: Any) -> None:
    assert one[0] == pytest.approx(other[0], rel=CLOSE, abs=CLOSE)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert torch.allclose(gradient, other[1][name], rtol=CLOSE, atol=CLOSE), name


def gate_gradient(found: Any) -> float:
    return max(float(gradient.abs().max()) for name, gradient in found[1].items() if "gate.weight" in name)


@pytest.mark.long
@pytest.mark.parametrize("method", BALANCED, ids=IDS)
def test_micro_batches_packing_filling_and_checkpointing_do_not_change_a_step(
    toy_llama: Callable[..., Any], method: AdapterMethod
) -> None:
    sequences = make_sequences(n=7)
    filled = Layout(packed=True, multiple=128)
    found = [
        gradients(make_steps(toy_llama(), method, layout, micro_tokens=micro), sequences)
        for layout, micro in ((PACKED, 1000), (PACKED, 70), (filled, 1000), (PADDED, 1000), (PADDED, 60), (PADDED, 16))
    ]
    for other in found[1:]:
        assert_same(found[0], other)
    for layout in (PACKED, PADDED):
        steps = make_steps(toy_llama(), method, layout, micro_tokens=100)
        checkpoint_activations(steps.loaded.model, True)
        assert_same(found[0], gradients(steps, sequences))
    without = gradients(make_steps(toy_llama(), type(method)(balance=0.0), PACKED), sequences)
    assert found[0][0][0] > without[0][0] + 1e-3, "the balance is part of the loss"
    assert abs(gate_gradient(found[0]) - gate_gradient(without)) > 1e-4, "and of the gradient"


def test_an_encoder_decoder_counts_the_tokens_of_each_side() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
    config = T5Config(**sizes, decoder_start_token_id=0, dropout_rate=0.0)
    found = []
    for micro in (1000, 16):
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(config).to(torch.float64).eval().requires_grad_(False)
        steps = make_steps(model, MoLA(balance=2.0), PADDED, micro_tokens=micro)
        found.append(gradients(steps, make_sequences(n=7)))
    assert_same(*found)
