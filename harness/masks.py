"""Attention masks that a model uses as they are.

From the mask of positions transformers makes a whole one in every forward, and the host waits for the device to say
whether all positions are visible. Models that use transformers' common function for it accept a whole mask instead.

Shapes: B sequences of S tokens.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def mask_kind(model: Any) -> str:
    """The mask that a model of transformers is given to hide tokens.

    "boolean" for fused attention and "added" for plain attention are whole masks (B, 1, queries, keys); "positions" is
    that of the keys (B, keys), for models that compute more of it, such as distances.
    """
    config = model.config.get_text_config(decoder=True)
    module = sys.modules[type(model).__module__]
    if not hasattr(module, "create_causal_mask") or getattr(config, "alibi", False):
        return "positions"
    return {"sdpa": "boolean", "eager": "added"}.get(config._attn_implementation, "positions")


def whole_mask(visible: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """A boolean mask (B, 1, queries, keys), True for visible keys, as a mask of this kind; dtype: of the model."""
    import torch

    if kind == "boolean":
        return visible
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)


def causal_mask(model: Any, read: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask for a forward of a decoder without a cache over padded sequences.

    Args:
        read: BoolTensor (B, S), True for tokens and False for padding. dtype: of the model.
    """
    kind = mask_kind(model)
    if kind == "positions" or _has_other_layers(model.config.get_text_config(decoder=True)):
        return read.long()
    visible = read[:, None, None] & read.new_ones(read.shape[1], read.shape[1]).tril()
    return whole_mask(visible, kind, dtype)


def _has_other_layers(config: Any) -> bool:
    """Whether some layers attend to a window of tokens only, or to none: each kind has a mask of its own."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    local = "local" in (getattr(config, "attention_layers", None) or ())
    return local or getattr(config, "sliding_window", None) is not None
