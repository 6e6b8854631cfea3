"""A folded LoRA as a PEFT folder.

``adapter_model.safetensors`` and ``adapter_config.json`` are written without importing peft; PEFT, vLLM and other
servers load them. All scales are multiplied into B, so ``lora_alpha`` equals the rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.export.folder import new_folder
from harness.method import LoRAFactors
from harness.models.transposed import is_transposed
from harness.store.files import write_atomic, write_json

SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values of vLLM's --max-lora-rank


@dataclass(frozen=True, kw_only=True)
class BaseName:
    """The base model. name: a hub id, or the absolute path of a folder or file; revision: a commit of the hub."""

    name: str
    revision: str | None = None


def export_lora(
    model: nn.Module,
    factors: Mapping[str, LoRAFactors],
    out: Path,
    *,
    pad_to: Sequence[int] | None = None,
    base: BaseName | None = None,
    check: Callable[[Path], None] | None = None,
) -> int:
    """Write one task's folded LoRA as a PEFT folder.

    Args:
        model: the base model, with or without its adapter; the configuration depends on its architecture.
        factors: result of ``Adapter.fold``, by module name.
        out: a folder that does not exist or is empty; it is written completely or not at all.
        pad_to: ranks that a server supports (``SERVED_RANKS``); every module is padded with zeros to the smallest of
            them that is not below the largest rank. None: no padding.
        base: name of the base model in the configuration (default: the model's own name).
        check: is given the written folder before it gets its name; nothing is left of the folder if it raises.
    Returns: the largest rank that was written.
    Raises: HarnessError without factors or for a rank above all of ``pad_to``; StoreError if ``out`` exists.
    """
    if not factors:
        raise HarnessError("the adapter has no layers, so there is nothing to export")
    rank = padded_rank(max(f.a.shape[0] for f in factors.values()), pad_to) if pad_to else None
    sized = {name: pad(lora, rank) for name, lora in factors.items()}
    tensors = {}
    for name, lora in sized.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = _whole(lora.a)
        tensors[f"base_model.model.{name}.lora_B.weight"] = _whole(lora.b)
    ranks = {name: int(lora.a.shape[0]) for name, lora in sized.items()}
    with new_folder(out) as folder:
        write_atomic(folder / "adapter_model.safetensors", save(tensors, {"format": "pt"}))
        write_json(folder / "adapter_config.json", peft_config(model, ranks, base))
        if check is not None:
            check(folder)
    return max(ranks.values())


def peft_config(model: nn.Module, ranks: Mapping[str, int], base: BaseName | None = None) -> dict[str, Any]:
    """The adapter_config.json of a LoRA with these ranks by module name.

    Modules whose rank is not the most common one need an entry in both ``rank_pattern`` and ``alpha_pattern``: without
    the latter, PEFT would use another scale.
    """
    config = cast("Any", getattr(model, "config", None))
    common = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: rank for name, rank in sorted(ranks.items()) if rank != common}
    seq2seq = bool(getattr(config, "is_encoder_decoder", False))
    named = base or BaseName(name=getattr(config, "name_or_path", ""))
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
        "base_model_name_or_path": named.name or None,
        "revision": named.revision,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": _targets(model, ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(is_transposed(model.get_submodule(name)) for name in ranks),
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }


def padded_rank(rank: int, allowed: Sequence[int]) -> int:
    """The smallest allowed rank that is at least ``rank``. Raises: HarnessError."""
    for size in sorted(allowed):
        if size >= rank:
            return size
    raise HarnessError(f"rank {rank} is above {max(allowed)}, the largest supported rank: use --no-pad")


def pad(lora: LoRAFactors, rank: int | None) -> LoRAFactors:
    """The same update, with zero rows in A and zero columns in B up to ``rank``. None: unchanged."""
    missing = 0 if rank is None else rank - lora.a.shape[0]
    if not missing:
        return lora
    return LoRAFactors(
        a=nn.functional.pad(lora.a, (0, 0, 0, missing)),
        b=nn.functional.pad(lora.b, (0, missing)),
    )


def _targets(model: nn.Module, ranks: Mapping[str, int]) -> list[str]:
    """The last parts of the module names, if no other module of any kind has such a name; else the full names.

    PEFT compares ``target_modules`` with the names of all modules (a block may be called "0", as a linear layer is).
    """
    ends = {name.rpartition(".")[2] for name in ranks}
    # The frozen layer inside an adapted one has the same name with ".base", and what the adapter adds is inside too.
    adapted = tuple(f"{name}." for name in ranks)
    names = {name for name, _ in model.named_modules() if not name.startswith(adapted)}
    alike = {name for name in names if name.rpartition(".")[2] in ends}
    return sorted(ends if alike == set(ranks) else ranks)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous()
