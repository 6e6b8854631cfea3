"""GPT-2's ``Conv1D`` as a linear layer, so that it is adapted, folded and merged as any other.

Conv1D computes x W + b with a weight W (d_in, d_out). Here it becomes an ``nn.Linear`` with the weight W^T, which is
written to and read from state dicts as W: a saved model is one of transformers again.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class TransposedLinear(nn.Linear):
    """A linear layer, weight (d_out, d_in), whose weight in a state dict is (d_in, d_out)."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"].t().contiguous()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        name = f"{prefix}weight"
        turned = {**state_dict, name: state_dict[name].t()} if name in state_dict else state_dict
        super()._load_from_state_dict(turned, prefix, *rest)


def replace_transposed(model: nn.Module) -> None:
    """Put a ``TransposedLinear`` of the same weights in the place of each Conv1D of a frozen model."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            d_in, d_out = module.weight.shape
            layer = TransposedLinear(d_in, d_out, device="meta")
            layer.weight = nn.Parameter(module.weight.detach().t().contiguous(), requires_grad=False)
            layer.bias = module.bias
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer.train(module.training))


def is_transposed(layer: nn.Module) -> bool:
    """Whether the layer, or the frozen one inside an adapted layer, is a Conv1D in transformers."""
    return isinstance(getattr(layer, "base", layer), TransposedLinear)
