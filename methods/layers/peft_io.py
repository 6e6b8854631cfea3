"""Reads LoRAs in PEFT's format (adapter_config.json and adapter_model.safetensors), to be used as experts.

Only plain LoRAs of linear layers are read. What changes anything else (DoRA, biases, embeddings, base weights) is
refused, because it cannot be expressed as an expert.
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
# Initialisations that leave the base model's weights as they are; others (PiSSA, OLoRA) change them.
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, kw_only=True)
class PeftLoRA:
    """The LoRA of one folder. factors: by module name of the base model, with the scale in B; ranks may differ."""

    folder: Path
    factors: Mapping[str, LoRAFactors]


def read_peft(folder: Path) -> PeftLoRA:
    """Read a folder of ``save_pretrained`` or ``harness export``. Raises: ModelError if it is not a plain LoRA."""
    config = _config(folder)
    pairs: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (safe_open is not a mapping)
                module, factor = _parts(folder, key)
                pairs.setdefault(module, {})[factor] = file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    if not pairs:
        raise ModelError(f"{folder / WEIGHTS} contains no LoRA: give a folder that peft's save_pretrained wrote")
    return PeftLoRA(folder=folder, factors={m: _factors(folder, config, m, pair) for m, pair in pairs.items()})


def peft_rank(folder: Path) -> int:
    """The largest rank in a folder's configuration. Raises: ModelError."""
    config = _config(folder)
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])


def peft_modules(folder: Path) -> list[str]:
    """The names of the modules that a folder's LoRA adapts. Raises: ModelError."""
    _config(folder)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return list(dict.fromkeys(_parts(folder, key)[0] for key in file.keys()))  # noqa: SIM118  (safe_open is not a mapping)
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
            f"{path}: {'; '.join(beyond)}. Experts must be plain LoRAs of linear layers: merge this one into the base "
            "model, or train one without these settings"
        )
    return config


def _parts(folder: Path, key: str) -> tuple[str, str]:
    match = _NAME.fullmatch(key)
    if match is None:
        raise ModelError(f"{folder / WEIGHTS} contains {key}, which is not a LoRA of a linear layer")
    return match[1], match[2]


def _factors(folder: Path, config: Mapping[str, Any], module: str, pair: Mapping[str, Tensor]) -> LoRAFactors:
    """The factors of one module, with PEFT's scale alpha / r, or alpha / sqrt(r) (arXiv 2312.03732), in B."""
    if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
        shapes = {factor: tuple(tensor.shape) for factor, tensor in pair.items()}
        raise ModelError(f"{folder / WEIGHTS}: {module} has {shapes}, not A (r, d_in) and B (d_out, r)")
    rank = pair["A"].shape[0]
    stated = _of(config.get("rank_pattern"), module, config["r"])
    if rank != stated:
        raise ModelError(f"{folder}: {module} has rank {rank}, but {CONFIG} states {stated}")
    alpha = _of(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return LoRAFactors(a=pair["A"], b=scale * pair["B"])


def _of(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the end of a module name, as PEFT matches them."""
    return next((v for key, v in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)
