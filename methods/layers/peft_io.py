"""Reads LoRAs in PEFT's format (adapter_config.json and adapter_model.safetensors), to be used as experts.

Only plain LoRAs of linear layers are read. What changes anything else (DoRA, biases, embeddings, base weights) is
refused, because it cannot be expressed as an expert.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from harness.errors import ModelError
from harness.hashing import is_lfs_pointer
from harness.method import LoRAFactors

LOG = logging.getLogger(__name__)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
_BEYOND = (
    "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication",
    "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "velora_config", "monteclora_config",
)  # fmt: skip
# Initialisations that leave the base model's weights as they are; others (PiSSA, OLoRA) change them.
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, kw_only=True)
class PeftLoRA:
    """The LoRA of one folder.

    base: the base model that it was trained on, as its configuration names it; None if it does not.
    factors: by module name of the base model, with the scale in B; ranks may differ.
    """

    folder: Path
    base: str | None
    factors: Mapping[str, LoRAFactors]

    def note_other_base(self, model: nn.Module) -> None:
        """Log a warning if the configuration names another base model than this one: equal shapes prove nothing.

        The last parts of names are compared, since a model has one name on the hub and others in local folders.
        """
        own = getattr(model, "name_or_path", "")
        if self.base and own and _model_name(self.base) != _model_name(own):
            LOG.warning(
                "%s was trained on the base model %s, and this one is %s: a LoRA of another base model is of no use, "
                "even if it has the same shapes. Give the LoRA's own base model with --model",
                *(self.folder, self.base, own),
            )


def read_peft(folder: Path) -> PeftLoRA:
    """Read a folder of ``save_pretrained`` or ``harness export``. Raises: ModelError if it is not a plain LoRA."""
    config = _config(folder)
    _require_weights(folder)
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
    factors = {m: _factors(folder, config, m, pair) for m, pair in pairs.items()}
    return PeftLoRA(folder=folder, base=config.get("base_model_name_or_path"), factors=factors)


def peft_rank(folder: Path) -> int:
    """The largest rank in a folder's configuration. Raises: ModelError."""
    config = _config(folder)
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])


def peft_modules(folder: Path) -> list[str]:
    """The names of the modules that a folder's LoRA adapts. Raises: ModelError."""
    _config(folder)
    _require_weights(folder)
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


def _require_weights(folder: Path) -> None:
    if (folder / WEIGHTS).is_file() and is_lfs_pointer(folder / WEIGHTS):
        raise ModelError(f"{folder / WEIGHTS} is a Git LFS pointer, not the LoRA. Fetch it there: git lfs pull")


def _model_name(path: str) -> str:
    """The last part of a hub id or a folder, in lower case; the hub id of a folder in the hub's cache."""
    place = Path(path)
    parts = (place.resolve() if place.exists() else place).parts
    cached = [part for part in parts if part.startswith("models--")]
    return (cached[-1].split("--")[-1] if cached else parts[-1] if parts else "").casefold()


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
