"""The kernel for packed sequences gives the losses of padded ones, and other passes keep the model's own kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from toy_steps import CLOSE, PADDED, gradients, make_sequences, make_steps
from transformers import AttentionInterface

from harness.registry import method_class
from harness.training.attention import VARLEN, attention, own_attention, varlen_attention, varlen_kernel
from harness.training.packing import Layout


def one_by_one(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, ends: Tensor, *longest: int, **options: Any
) -> Tensor:
    """What PyTorch's kernel computes, a sequence at a time: (tokens, heads, width)."""
    assert options["window_size"] == (-1, 0)
    assert max(longest) == max(starts.diff())
    parts = []
    for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        q, k, v = (part[first:last].transpose(0, 1)[None] for part in (query, key, value))
        own = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=options["scale"], enable_gqa=options["enable_gqa"]
        )
        parts.append(own[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture
def varlen() -> Iterator[str]:
    """The kernel's name in transformers, for a computation of the CPU."""
    AttentionInterface.register("varlen", varlen_attention(one_by_one))
    yield VARLEN
    del AttentionInterface._global_mapping["varlen"]


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["lora_all", "cgc_lora", "moa"])
def test_varlen_attention_gives_the_losses_and_gradients_of_padded_sequences(
    toy_llama: Callable[..., Any], varlen: str, name: str
) -> None:
    results = []
    for layout in (Layout(packed=True, attention=varlen), PADDED):
        steps = make_steps(toy_llama(), method_class(name)(), layout, micro_tokens=128)
        with attention(steps.loaded.model, layout.attention):
            results.append(gradients(steps, make_sequences()))
    (losses, found), (expected_losses, expected) = results
    assert losses == pytest.approx(expected_losses, rel=CLOSE)
    for parameter, gradient in expected.items():
        other = found[parameter]
        assert gradient is not None
        assert other is not None
        assert torch.allclose(gradient, other, atol=CLOSE), parameter


def test_varlen_attention_refuses_what_it_would_compute_wrongly() -> None:
    attend = varlen_attention(one_by_one)
    q = torch.ones(1, 2, 4, 8)
    ends = {"cu_seq_lens_q": torch.tensor([0, 4]), "max_length_q": 4}
    causal, encoder = SimpleNamespace(is_causal=True), SimpleNamespace(is_causal=False)
    for module, options in ((causal, {}), (encoder, ends), (causal, {**ends, "softcap": 30.0})):
        with pytest.raises(NotImplementedError, match="packed sequences of causal layers"):
            attend(module, q, q, q, None, **options)


def test_this_version_of_pytorch_has_the_kernel_that_is_registered() -> None:
    kernel = varlen_kernel()
    assert kernel is not None
    assert kernel.__name__ == "varlen_attn"


def test_other_passes_use_the_models_own_attention(toy_llama: Callable[..., Any], varlen: str) -> None:
    model = toy_llama()
    own = model.config._attn_implementation
    with attention(model, varlen):
        assert model.config._attn_implementation == varlen
        with own_attention(model):
            assert model.config._attn_implementation == own
        assert model.config._attn_implementation == varlen
    with own_attention(model):
        assert model.config._attn_implementation == own
