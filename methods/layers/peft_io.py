"""LoRAs that PEFT or another program has trained, read as experts: adapter_config.json and adapter_model.safetensors.

Plain LoRAs of linear layers alone: what changes anything else (DoRA, biases, embeddings, base weights) is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.errors import ModelError
from harness.method import LoRAFactors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
_BEYOND = (
    "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication",
    "fan_in_fan_out", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "velora_config", "monteclora_config",
)  # fmt: skip
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # others begin by changing the base model's weights


@dataclass(frozen=True, kw_only=True)
class PeftLoRA:
    """One folder's LoRA. factors: by module name of the base model, every scale in B; ranks may differ."""

    folder: Path
    factors: Mapping[str, LoRAFactors]


def read_peft(folder: Path) -> PeftLoRA:
    """Read a folder of ``save_pretrained`` or ``harness export``. Raises: ModelError for what is no plain LoRA."""
    config = _config(folder)
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (no mapping)
                module, factor = _parts(folder, key)
                found.setdefault(module, {})[factor] = file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    if not found:
        raise ModelError(f"{folder / WEIGHTS} holds no LoRA")
    return PeftLoRA(folder=folder, factors={m: _factors(folder, config, m, pair) for m, pair in found.items()})


def peft_rank(folder: Path) -> int:
    """The largest rank that a folder's configuration names. Raises: ModelError."""
    config = _config(folder)
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])


def peft_modules(folder: Path) -> list[str]:
    """The modules that a folder's LoRA adapts, by name. Raises: ModelError."""
    _config(folder)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return list(dict.fromkeys(_parts(folder, key)[0] for key in file.keys()))  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read: {error}") from error


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}. Give a folder that peft's save_pretrained wrote") from error
    beyond = [f"{name}={config[name]!r}" for name in _BEYOND if config.get(name)]
    beyond += [f"bias={config['bias']!r}"] if config.get("bias", "none") != "none" else []
    if config.get("init_lora_weights", True) not in _STARTS:
        beyond.append(f"init_lora_weights={config['init_lora_weights']!r}, which changes the base model")
    if config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        beyond.append(f"peft_type={config.get('peft_type')!r}, r={config.get('r')!r}")
    if beyond:
        raise ModelError(
            f"{path}: {'; '.join(beyond)}. Experts are plain LoRAs of linear layers; merge it into the base, or train "
            "one without"
        )
    return config


def _parts(folder: Path, key: str) -> tuple[str, str]:
    match = _NAME.fullmatch(key)
    if match is None:
        raise ModelError(f"{folder / WEIGHTS} holds {key}, which is no LoRA of a linear layer")
    return match[1], match[2]


def _factors(folder: Path, config: Mapping[str, Any], module: str, pair: Mapping[str, Tensor]) -> LoRAFactors:
    """With PEFT's scale, alpha / r or alpha / sqrt(r) (arXiv 2312.03732), in B; patterns name the module's end."""
    if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
        shapes = {factor: tuple(tensor.shape) for factor, tensor in pair.items()}
        raise ModelError(f"{folder / WEIGHTS}: {module} has {shapes}, not A (r, d_in) and B (d_out, r)")
    rank = pair["A"].shape[0]
    stated = _of(config.get("rank_pattern"), module, config["r"])
    if rank != stated:
        raise ModelError(f"{folder}: {module} has rank {rank}, and {stated} by its {CONFIG}")
    alpha = _of(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return LoRAFactors(a=pair["A"], b=scale * pair["B"])


def _of(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    return next((v for key, v in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)
