"""A folded LoRA merged into the weights of its base model, as a whole transformers model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.errors import HarnessError, ModelError
from harness.export.folder import new_folder
from harness.method import LoRAFactors
from harness.models.loading import bars_on_terminals_only


def merge_into(model: nn.Module, factors: Mapping[str, LoRAFactors]) -> None:
    """Add a folded LoRA to the weights of a bare model (after ``Adapter.detach``), with sums in float32 or better.

    Merge into a float32 model: in half precision most entries of a small update would be lost to rounding.
    Raises: ModelError for a weight that several modules share; HarnessError for a module that the model does not have.
    """
    users = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers = dict(model.named_modules())
    chosen: list[tuple[nn.Linear, LoRAFactors]] = []
    for name, lora in factors.items():
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear):
            raise HarnessError(f"the model has no linear layer {name!r}; detach its adapter before merging")
        if users[id(layer.weight)] > 1:
            raise ModelError(
                f"{name} shares its weight with another module, so merging would change both: use --format peft"
            )
        chosen.append((layer, lora))
    with torch.no_grad():
        for layer, lora in chosen:
            exact = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
            delta = lora.b.to(layer.weight.device, exact) @ lora.a.to(layer.weight.device, exact)
            layer.weight.copy_(layer.weight.to(exact) + delta)


def export_merged(model: Any, factors: Mapping[str, LoRAFactors], tokenizer: Any, out: Path) -> None:
    """Merge into a bare transformers model (see ``merge_into``) and save it, with its tokenizer if there is one."""
    merge_into(model, factors)
    with new_folder(out) as folder, bars_on_terminals_only():
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
