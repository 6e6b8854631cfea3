"""The formats of ``harness export``. A new format is a function that writes a folder, and an entry in ``FORMATS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from harness.export.peft import BaseName
    from harness.method import LoRAFactors
    from harness.models.loading import LoadedModel

DEFAULT: Final = "peft"


@dataclass(frozen=True, kw_only=True)
class FoldedTask:
    """One task's share of an adapter as a plain LoRA, and the bare base model.

    pad: pad the rank for servers. check: raises if a written adapter is not loaded as it should be; None: no check.
    """

    loaded: LoadedModel
    factors: Mapping[str, LoRAFactors]
    base: BaseName
    pad: bool
    check: Callable[[Path], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    write: writes a task to a folder that does not exist; returns the largest rank of an adapter, None for a model.
    is_adapter: whether it writes an adapter next to its base model; only adapters can be exported for all tasks at
        once, and padded.
    precision: of the base model while it is written; None: any, because only its structure is used.
    """

    description: str
    write: Callable[[FoldedTask, Path], int | None]
    is_adapter: bool
    precision: Literal["fp32"] | None = None


def write_peft(task: FoldedTask, out: Path) -> int | None:
    """A PEFT LoRA folder."""
    from harness.export.peft import SERVED_RANKS, export_lora

    pad_to = SERVED_RANKS if task.pad else None
    return export_lora(task.loaded.model, task.factors, out, pad_to=pad_to, base=task.base, check=task.check)


def write_merged(task: FoldedTask, out: Path) -> int | None:
    """A whole model and its tokenizer."""
    from harness.export.merged import export_merged

    export_merged(task.loaded.model, task.factors, task.loaded.tokenizer, out)
    return None


FORMATS: Final[Mapping[str, Format]] = {
    "peft": Format(description="LoRA adapter", write=write_peft, is_adapter=True),
    "merged": Format(
        description="whole model in float32 (one --task)", write=write_merged, is_adapter=False, precision="fp32"
    ),
}
