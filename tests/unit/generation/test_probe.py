"""Models that cannot be decoded are refused before anything is trained on them."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest
import torch
from toy_generation import EOS, VOCABULARY, loaded, toy

from harness.errors import ModelError
from harness.generation.probe import check_generates
from harness.models.loading import LoadedModel

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "eos_token_id": EOS}


def with_own_cache() -> Any:
    """MiniMax reads its lightning attention's state from a cache of its own class."""
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 16}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 8}
    kinds = ["linear_attention", "full_attention"]
    return MiniMaxForCausalLM(MiniMaxConfig(**SIZES, **heads, **experts, layer_types=kinds))


def without_cache() -> Any:
    """RWKV carries its state in an argument that no other model has."""
    from transformers import RwkvConfig, RwkvForCausalLM

    return RwkvForCausalLM(RwkvConfig(**SIZES, attention_hidden_size=16, context_length=32))


@pytest.mark.parametrize("make", [with_own_cache, without_cache])
def test_a_model_whose_cache_is_not_supported_is_refused_by_its_name(make: Any) -> None:
    torch.manual_seed(0)
    model = loaded(make(), torch.float32)
    with pytest.raises(ModelError, match=rf"{type(model.model).__name__} cannot generate here.*Choose another model"):
        check_generates(model)


def test_running_out_of_memory_says_nothing_about_the_model(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    @wraps(type(llama.model).forward)
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("toy")

    monkeypatch.setattr(type(llama.model), "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        check_generates(llama)


@pytest.mark.parametrize("kind", ["no positions", "local columns", "sliding window", "another start"])
def test_models_that_can_generate_pass(kind: str) -> None:
    check_generates(toy(kind))
