"""Models that cannot be divided are refused before any process waits for another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import ModelError
from harness.models.loading import load_model
from harness.models.sharding import shard_base
from harness.runtime.distributed import ProcessGroup

TWO = ProcessGroup(rank=0, world_size=2)


def shard(model: Any) -> None:
    shard_base(model, "a toy", torch.device("cpu"), TWO)


def test_an_encoder_decoder_is_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=17, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ModelError, match=r"a toy is an encoder-decoder.*leave it out"):
        shard(T5ForConditionalGeneration(config))


def test_a_model_that_drops_blocks_at_random_is_refused() -> None:
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"vocab_size": 17, "hidden_size": 8, "ffn_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with pytest.raises(ModelError, match=r"leaves out blocks at random in training \(layerdrop=0\.1"):
        shard(OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=8, layerdrop=0.1)))


def test_a_model_without_a_stack_of_blocks_is_refused(toy_llama: Callable[..., Any]) -> None:
    model = toy_llama()
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match="no stack of blocks"):
        shard(model)


def test_a_model_that_uses_a_block_twice_is_refused(toy_llama: Callable[..., Any]) -> None:
    model = toy_llama()
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(ModelError, match="no stack of blocks"):
        shard(model)


def test_a_gguf_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "toy.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"toy is a GGUF file.*train\.shard_base=true, give"):
        load_model(str(file), device="cpu", processes=TWO)
