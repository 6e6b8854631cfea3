"""A method in ten lines: one LoRA for all tasks on the attention layers only, with another scale."""

from dataclasses import dataclass
from typing import ClassVar

from methods.lora_all import LoRAAll


@dataclass(frozen=True, kw_only=True)
class ToyLoRA(LoRAAll):
    """LoRA on the query and value projections."""

    summary: ClassVar[str] = "a third party's LoRA"
    ablations = {"narrow": {"rank": 2}}

    targets: str = "q_proj,v_proj"
    rank: int = 8
