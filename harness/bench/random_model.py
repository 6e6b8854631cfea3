"""Random models of well-known sizes, for measurements that need no weights."""

from __future__ import annotations

from dataclasses import dataclass

from harness.config.spec import Precision
from harness.errors import unknown
from harness.models.loading import LoadedModel, dtype_of

_CPU_BLOCKS = 4
"""Blocks of a random model on a CPU, where a whole one would take minutes per step."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a Llama."""

    blocks: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool


SHAPES = {
    "135m": Shape(blocks=30, width=576, inner=1536, heads=9, kv_heads=3, vocabulary=49152, tied=True),
    "1b": Shape(blocks=16, width=2048, inner=8192, heads=32, kv_heads=8, vocabulary=128256, tied=True),
    "7b": Shape(blocks=32, width=4096, inner=11008, heads=32, kv_heads=32, vocabulary=32000, tied=False),
}


def random_model(
    name: str, blocks: int | None = None, precision: Precision = "auto", device: str | None = None
) -> LoadedModel:
    """A Llama of a shape with random weights, frozen, without a tokenizer.

    Args:
        blocks: number of blocks. With fewer than the shape has, the vocabulary shrinks in proportion, so that the
            output head keeps its share of a step's work. None: 4 on a CPU, all elsewhere.

    Raises: UsageError for an unknown shape.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if name not in SHAPES:
        raise unknown("shape", name, SHAPES)
    shape = SHAPES[name]
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    blocks = blocks or (_CPU_BLOCKS if place.type == "cpu" else shape.blocks)
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=max(1, shape.vocabulary * min(blocks, shape.blocks) // shape.blocks),
        tie_word_embeddings=shape.tied,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )
    dtype, before = dtype_of(precision, place), torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with place:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return LoadedModel(
        model=model.eval().requires_grad_(False),
        tokenizer=None,
        device=place,
        dtype=dtype,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        max_context=config.max_position_embeddings,
        encoder_decoder=False,
    )
