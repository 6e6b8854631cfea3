"""The attention mask that a model is given while it decodes."""

from __future__ import annotations

import sys

from harness.models.loading import LoadedModel


def mask_kind(loaded: LoadedModel) -> str:
    """What a model is given to hide unused columns: "positions" (S, columns), or a whole mask (S, 1, 1, columns).

    From the mask of positions transformers makes a whole one at every token, and the host waits for the device to say
    whether all positions are visible. Models that use transformers' common function for it accept a whole mask as it
    is: "boolean" for fused attention, "added" for plain attention. Others, such as those that compute distances from
    the mask of positions, get that one.
    """
    config = loaded.model.config.get_text_config(decoder=True)
    module = sys.modules[type(loaded.model).__module__]
    if not hasattr(module, "create_causal_mask") or getattr(config, "alibi", False):
        return "positions"
    return {"sdpa": "boolean", "eager": "added"}.get(config._attn_implementation, "positions")
