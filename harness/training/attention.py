"""Attention kernels for packed sequences, and activation checkpointing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from harness.models.loading import LoadedModel

CheckpointContexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


@contextmanager
def attention(model: Any, name: str | None) -> Iterator[None]:
    """Use another attention kernel while the context is open; None keeps the model's own.

    Raises: ValueError or ImportError, from transformers, where the model or the machine does not support the kernel.
    """
    own = getattr(model.config, "_attn_implementation", None)
    if name is None or name == own:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def checkpoint_activations(model: Any, on: bool, contexts: CheckpointContexts | None = None) -> None:
    """Turn gradient checkpointing of every block on or off, without reentrant autograd.

    contexts: called at each forward of a block, gives the context of this forward and that of its repetition.

    Non-reentrant checkpoints need no input that requires a gradient, so the hook on the embeddings that transformers
    adds for reentrant ones, and never removes, is removed.
    """
    options = {"use_reentrant": False} | ({} if contexts is None else {"context_fn": contexts})
    if on and hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(options)
    elif on:  # versions of transformers before the method was renamed
        model.gradient_checkpointing_enable(options)
    elif hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()
    if on and getattr(model, "_require_grads_hook", None) is not None:
        model.disable_input_require_grads()


def packing_kernels(loaded: LoadedModel) -> list[str | None]:
    """Names of the kernels to try for packed sequences, the likely fastest first; None is the model's own.

    On a CPU only the model's own is tried, because the others have no backward pass there.
    """
    if loaded.device.type != "cuda":
        return [None]
    half = loaded.dtype in (torch.float16, torch.bfloat16)
    flash = ["flash_attention_2"] if half and importlib.util.find_spec("flash_attn") is not None else []
    return [*flash, "flex_attention", None]
