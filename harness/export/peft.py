"""One task's share of an adapter as files that others load: a LoRA folder as PEFT writes it, or a whole model.

``adapter_model.safetensors`` and ``adapter_config.json`` are written here, without importing peft: stock PEFT, vLLM and
other servers load them. Every scale is in B already, so ``lora_alpha`` equals the rank everywhere.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from harness.errors import HarnessError, ModelError, StoreError
from harness.method import LoRAFactors
from harness.store.files import explain_write_errors, write_atomic, write_json

SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values of vLLM's --max-lora-rank


@dataclass(frozen=True, kw_only=True)
class BaseName:
    """How others find the base model. name: a hub id, or the absolute path of a folder or file; revision: a commit."""

    name: str
    revision: str | None = None


def export_lora(
    model: nn.Module,
    factors: Mapping[str, LoRAFactors],
    out: Path,
    *,
    pad_to: Sequence[int] | None = None,
    base: BaseName | None = None,
) -> int:
    """Write one task's folded LoRA as a PEFT folder.

    Args:
        model: the base model, with or without its adapter: its kind goes into the configuration.
        factors: of ``Adapter.fold``, by module name.
        out: a folder that does not exist yet, or is empty; it appears whole or not at all.
        pad_to: ranks that a server takes (``SERVED_RANKS``); every module's rank is filled up with zeros to the
            smallest of them that holds the largest rank. None: ranks as they are.
        base: what the configuration calls the base model (default: what the model calls itself).
    Returns: the largest rank that was written.
    Raises: HarnessError without factors or for a rank above all of ``pad_to``, StoreError where ``out`` exists.
    """
    if not factors:
        raise HarnessError("this adapter has no layer: there is nothing to export")
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
    return max(ranks.values())


def peft_config(model: nn.Module, ranks: Mapping[str, int], base: BaseName | None = None) -> dict[str, Any]:
    """The adapter_config.json of a LoRA with these ranks by module name.

    Modules whose rank is not the most common one need an entry in ``rank_pattern`` and in ``alpha_pattern``: without
    the latter the scale is silently another.
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
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }


def merge_into(model: nn.Module, factors: Mapping[str, LoRAFactors]) -> None:
    """Add a folded LoRA to a bare model's weights (after ``Adapter.detach``); sums in float32 or better.

    In half precision most entries of a small update are lost to rounding: merge into a float32 model.
    Raises: ModelError for a weight that other modules share, HarnessError for a module that the model lacks.
    """
    users = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers = dict(model.named_modules())
    chosen: list[tuple[nn.Linear, LoRAFactors]] = []
    for name, lora in factors.items():
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear):
            raise HarnessError(f"the model has no linear layer {name!r}; detach its adapter before merging")
        if users[id(layer.weight)] > 1:
            raise ModelError(f"{name} shares its weight with another module: merging would change both")
        chosen.append((layer, lora))
    with torch.no_grad():
        for layer, lora in chosen:
            exact = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
            delta = lora.b.to(layer.weight.device, exact) @ lora.a.to(layer.weight.device, exact)
            layer.weight.copy_(layer.weight.to(exact) + delta)


def export_merged(model: Any, factors: Mapping[str, LoRAFactors], tokenizer: Any, out: Path) -> None:
    """Merge into a bare transformers model (see ``merge_into``) and save it, with its tokenizer where it has one."""
    merge_into(model, factors)
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def padded_rank(rank: int, allowed: Sequence[int]) -> int:
    """The smallest allowed rank that is no smaller. Raises: HarnessError."""
    for size in sorted(allowed):
        if size >= rank:
            return size
    raise HarnessError(f"rank {rank} is above {max(allowed)}, the largest that is asked for: export without padding")


def pad(lora: LoRAFactors, rank: int | None) -> LoRAFactors:
    """The same update with rows of A and columns of B that are zero, up to a rank. None: as it is."""
    missing = 0 if rank is None else rank - lora.a.shape[0]
    if not missing:
        return lora
    return LoRAFactors(
        a=nn.functional.pad(lora.a, (0, 0, 0, missing)),
        b=nn.functional.pad(lora.b, (0, missing)),
    )


def _targets(model: nn.Module, ranks: Mapping[str, int]) -> list[str]:
    """The last parts of the modules' names where these name no other linear layer, else the whole names."""
    ends = {name.rpartition(".")[2] for name in ranks}
    # An adapted layer is no nn.Linear itself; the frozen one inside of it goes by the same name and ".base".
    linear = {n.removesuffix(".base") for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    alike = {name for name in linear if name.rpartition(".")[2] in ends}
    return sorted(ends if alike == set(ranks) else ranks)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous()


def require_new(out: Path) -> None:
    """Raises: StoreError where there is something at ``out`` already."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise StoreError(f"{out} exists already; choose another folder or remove it")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that is written aside and gets its name at the end. Raises: StoreError where that is taken."""
    require_new(out)
    aside = out.with_name(f".{out.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with explain_write_errors(out):
            aside.mkdir(parents=True)
            yield aside
            aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
