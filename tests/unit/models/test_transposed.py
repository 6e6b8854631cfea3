"""GPT-2's Conv1D is loaded as a linear layer, and saved as Conv1D."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.linear_layers import linear_layers
from harness.models.transposed import replace_transposed
from harness.testing.toys import TASKS
from methods.lora_all import LoRAAll

TOKENS = torch.arange(14).view(2, 7)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, **sizes)).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS).logits
    return found


def test_the_model_computes_the_same_and_every_block_is_adapted() -> None:
    model = gpt2()
    expected = logits(model)
    replace_transposed(model)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-12)
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert list(linear_layers(model).layers) == [f"transformer.h.{i}.{name}" for i in (0, 1) for name in names]
    assert linear_layers(model).left_out == ()


def test_a_saved_model_is_one_of_transformers_again(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    model = gpt2()
    expected = logits(model)
    replace_transposed(model)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(GPT2LMHeadModel.from_pretrained(tmp_path)), expected, rtol=0, atol=1e-12)


def test_a_state_dict_is_loaded_as_it_was_saved() -> None:
    """The square weight of attn.c_proj would be loaded transposed without an error."""
    model, other = gpt2(), gpt2()
    for parameter in other.parameters():
        parameter.normal_(0, 0.3)
    replace_transposed(model)
    replace_transposed(other)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))
    weight = model.state_dict()["transformer.h.0.mlp.c_fc.weight"]
    assert weight.shape == (16, 64)


def test_a_folded_adapter_merges_as_conv1d_would() -> None:
    model, original = gpt2(), gpt2()
    replace_transposed(model)
    adapter = LoRAAll(rank=2).attach(model, list(TASKS), seed=0)
    for parameter in adapter.trainable().values():
        nn.init.normal_(parameter, std=0.2)
    factors = adapter.fold(TASKS[1])
    for name, lora in factors.items():
        original.get_submodule(name).weight += (lora.b @ lora.a).t()
    with adapter.apply(factors, merge=True):
        torch.testing.assert_close(logits(model), logits(original), rtol=0, atol=1e-10)
    with adapter.route(torch.tensor([1, 1])):
        torch.testing.assert_close(logits(model), logits(original), rtol=0, atol=1e-10)
