"""Quantised base models: frozen weights of 4 or 8 bits, which a forward pass dequantises layer by layer.

nf4: 4-bit NormalFloat with double quantisation (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.
int8: symmetric 8-bit weights with one scale for each output, by torchao. Activations stay in the compute dtype in both,
so that the output for a token does not depend on the other tokens of a batch, as it does in LLM.int8(), whose outlier
columns are those of the whole batch.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Final, get_args

from harness.config.spec import Quantisation
from harness.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

QUANTISATIONS: Final = get_args(Quantisation)
_PACKAGES: Final = {"nf4": "bitsandbytes", "int8": "torchao"}
# Rows of the identity that are sent through a layer at a time, to read its weights.
_ROWS: Final = 1024


def quantisation_config(name: str, compute: torch.dtype) -> Any:
    """The configuration that transformers quantises a model by while it loads it.

    Args: compute: the dtype of the dequantised weights and of the products.
    Raises: ModelError if the package that it needs is not installed.
    """
    package = _PACKAGES[name]
    if importlib.util.find_spec(package) is None:
        raise ModelError(f"train.precision={name} needs the package {package}: pip install 'mtlora-harness[{name}]'")
    if name == "nf4":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(version=2))


def check_quantisable(label: str, precision: str, config: Any, *, gguf: bool) -> None:
    """Raises: ModelError for a model that cannot be quantised while it is loaded. config: its configuration."""
    if gguf:
        raise ModelError(
            f"{label} is a GGUF file, which is dequantised when it is loaded: train.precision={precision} does not "
            "apply to it. Give the model's original folder or hub id, or another train.precision"
        )
    stated = getattr(config, "quantization_config", None)
    if stated is not None:
        method = stated.get("quant_method") if isinstance(stated, dict) else stated.quant_method
        raise ModelError(
            f"{label} is quantised already ({method}, in its config.json): leave train.precision={precision} out"
        )


def check_quantised(label: str, precision: str, model: nn.Module) -> None:
    """Raises: ModelError for a loaded model without quantised weights, or with those of GPT-2's Conv1D.

    Conv1D stores its weights transposed, and a merged model could not be saved as one of transformers again.
    """
    from transformers.pytorch_utils import Conv1D

    conv = any(isinstance(m, Conv1D) or getattr(m, "source_cls", None) is Conv1D for m in model.modules())
    if conv or not any(is_quantised(m) for m in linear_modules(model)):
        kinds = "Conv1D layers" if conv else "no linear layer that can be quantised"
        raise ModelError(
            f"{label} has {kinds}: train.precision={precision} is for models of linear layers. Give bf16 or fp32"
        )


def linear_modules(model: nn.Module) -> list[nn.Linear]:
    """The linear layers of a model, quantised or not."""
    from torch import nn

    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def is_quantised(layer: nn.Linear) -> bool:
    """Whether the weights of a linear layer are quantised: packed integers, or a tensor class of their own."""
    from torch import nn

    return type(layer.weight) is not nn.Parameter


def n_parameters(model: Any) -> int:
    """The number of parameters as it was before weights were packed; each one counts once, also where it is tied."""
    packed = {id(layer.weight): layer for layer in linear_modules(model) if is_quantised(layer)}
    return sum(
        packed[id(p)].in_features * packed[id(p)].out_features if id(p) in packed else p.numel()
        for p in model.parameters()
    )


def weight_bytes(model: nn.Module) -> int:
    """The bytes of all parameters as they are stored, with the scales of quantised ones."""
    found = {id(t): t for p in model.parameters() for t in _stored(p)}
    return sum(t.numel() * t.element_size() for t in found.values())


def dequantise(model: Any) -> None:
    """Replace every quantised layer by a float32 one of equal weights, so that the model is one without quantisation.

    The weights are those that the layer multiplies with: they are read from its output for the identity, which is
    exact, since a product with 1 and sums with 0 are.
    """
    import torch
    from torch import nn

    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or not is_quantised(module):
            continue
        layer = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        with torch.no_grad():
            layer.weight = nn.Parameter(_weights_of(module), requires_grad=False)
            layer.bias = None if module.bias is None else nn.Parameter(module.bias.float(), requires_grad=False)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.train(module.training))
    model.hf_quantizer.remove_quantization_config(model)


def _weights_of(layer: nn.Linear) -> Tensor:
    """(d_out, d_in) in float32; the layer computes in float32."""
    import torch

    device = layer.weight.device
    parts = []
    for first in range(0, layer.in_features, _ROWS):
        n = min(_ROWS, layer.in_features - first)
        rows = torch.zeros(n, layer.in_features, device=device)
        rows[torch.arange(n), torch.arange(first, first + n)] = 1.0
        out = layer(rows)
        parts.append((out if layer.bias is None else out - layer.bias).float())
    return torch.cat(parts).T.contiguous()


def _stored(parameter: Tensor) -> list[Tensor]:
    """The plain tensors of this process that hold a parameter."""
    local = getattr(parameter, "to_local", None)
    if local is not None:  # A sharded parameter.
        return [local()]
    state = getattr(parameter, "quant_state", None)
    if state is not None:  # bitsandbytes keeps packed values, and scales of two levels.
        nested = [] if state.state2 is None else [state.state2.absmax, state.state2.code]
        return [parameter.data, state.absmax, state.code, *nested]
    flatten = getattr(parameter, "__tensor_flatten__", None)
    if flatten is None:
        return [parameter]
    parts = (getattr(parameter, name) for name in flatten()[0])
    return [inner for part in parts for inner in _stored(part)]
