"""Attention kernels for packed sequences, and activation checkpointing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from harness.models.loading import LoadedModel


@contextmanager
def attention(model: Any, name: str | None) -> Iterator[None]:
    """Another attention kernel for as long as the context lasts."""
    own = getattr(model.config, "_attn_implementation", None)
    if name is None or name == own:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def checkpoint_activations(model: Any, on: bool) -> None:
    """Gradient checkpointing of every block, without reentering autograd.

    Such checkpoints need no input that requires a gradient: the hook on the embeddings that transformers adds for the
    other kind, and leaves there, is taken away.
    """
    if on and hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    elif on:  # transformers before the new name
        model.gradient_checkpointing_enable({"use_reentrant": False})
    elif hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()
    if on and getattr(model, "_require_grads_hook", None) is not None:
        model.disable_input_require_grads()


def _kernels(loaded: LoadedModel) -> list[str | None]:
    """Kernels to try, the likely fastest first. On a CPU the model's own: others have no backward pass there."""
    if loaded.device.type != "cuda":
        return [None]
    half = loaded.dtype in (torch.float16, torch.bfloat16)
    flash = ["flash_attention_2"] if half and importlib.util.find_spec("flash_attn") is not None else []
    return [*flash, "flex_attention", None]
