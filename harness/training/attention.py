"""Attention kernels for packed sequences, and activation checkpointing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, cast

import torch
from torch import Tensor

from harness.models.loading import LoadedModel

CheckpointContexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]
VARLEN: Final = "varlen"
_FLASH: Final = "flash_attention_2"
_FLEX: Final = "flex_attention"
_OWN: Final = "attention_outside_training"  # The model's attribute while another kernel is in use.

# Kernels that take the boundaries of the packed sequences. Without them transformers computes them from the positions,
# for which the host waits in each layer.
TAKES_BOUNDARIES: Final = frozenset({VARLEN, _FLASH})

# Flex attention works in blocks of this many tokens, and each new length may cost a compilation.
_BLOCK: Final = 128


def block_of(kernel: str | None) -> int:
    """Packed sequences are filled up to a multiple of this many tokens for a kernel."""
    return _BLOCK if kernel == _FLEX else 1


def varlen_kernel() -> Callable[..., Tensor] | None:
    """PyTorch's attention for sequences of different lengths, which PyTorch 2.13 has; None if this version has none."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return None
    from torch.nn.attention.varlen import varlen_attn

    return cast("Callable[..., Tensor]", varlen_attn)


def varlen_attention(kernel: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """An attention function of transformers for packed sequences. It needs no mask: the kernel takes the boundaries."""

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """query (1, heads, S, width), key and value (1, key heads, S, width); returns (1, S, heads, width)."""
        if "cu_seq_lens_q" not in options or options.get("softcap") is not None or not _is_causal(module, options):
            raise NotImplementedError(f"{VARLEN} attention is for packed sequences of causal layers without softcap")
        query, key, value = (part.transpose(1, 2)[0] for part in (query, key, value))
        ends, longest = options["cu_seq_lens_q"], options["max_length_q"]
        out = kernel(
            *(query, key, value, ends, ends, longest, longest),
            scale=scaling,
            window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out[None], None

    return attend


def _is_causal(module: Any, options: dict[str, Any]) -> bool:
    stated = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if stated is None else stated)


def register_varlen() -> bool:
    """Make PyTorch's kernel an attention function of transformers; False if this version has none."""
    from transformers import AttentionInterface

    kernel = varlen_kernel()
    if kernel is not None:
        AttentionInterface.register(VARLEN, varlen_attention(kernel))
    return kernel is not None


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
    setattr(model, _OWN, own)
    try:
        yield
    finally:
        delattr(model, _OWN)
        model.set_attn_implementation(own)


@contextmanager
def own_attention(model: Any) -> Iterator[None]:
    """Inside ``attention``, use the model's own kernel: other passes than that over packed sequences need a mask.

    model: anything but a model of transformers has only one kernel.
    """
    own, name = getattr(model, _OWN, None), getattr(getattr(model, "config", None), "_attn_implementation", None)
    if own is None:
        yield
        return
    model.set_attn_implementation(own)
    try:
        yield
    finally:
        model.set_attn_implementation(name)


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
    varlen = [VARLEN] if half and register_varlen() else []
    flash = [_FLASH] if half and importlib.util.find_spec("flash_attn") is not None else []
    return [*varlen, *flash, _FLEX, None]
