"""The base class of methods that make something of finished LoRAs: trained alone, or read from folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar, cast

from torch import nn

from harness.method import AdapterMethod, Budget
from methods.base import LoRAAdapter, LoRAMethod, Parts, require_target_layers
from methods.layers.peft_io import FILES, PeftLoRA, peft_modules, peft_rank, read_peft

Self = TypeVar("Self", bound="ExpertFolders")


@dataclass(frozen=True, kw_only=True)
class ExpertFolders(LoRAMethod):
    """A method over one LoRA for each task that is trained alone, or over any number of LoRAs from folders.

    rank: of each LoRA.
    experts: folders of PEFT LoRAs, any number, instead of those that are trained alone. The rank is then the largest of
        theirs, and smaller LoRAs are padded with zeros.
    """

    folders: ClassVar[Mapping[str, Sequence[str]]] = {"experts": FILES}
    mixes_tasks: ClassVar[bool] = False

    rank: int = 16
    experts: tuple[str, ...] = ()

    def expert_rank(self) -> int:
        """The rank of the LoRAs: ``rank``, or the largest one of those read from folders."""
        return max(map(peft_rank, map(Path, self.experts))) if self.experts else self.rank

    def expert_scale(self) -> float:
        """The scale s of the LoRAs; those from folders have theirs in B."""
        return 1.0 if self.experts else self.alpha / self.rank

    def expert_names(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """A name for each LoRA: that of its task, or one for each folder."""
        return tuple(f"expert{i}" for i in range(len(self.experts))) or tuple(tasks)

    def target_layers(self, model: nn.Module) -> Mapping[str, nn.Linear]:
        """The layers to adapt; with ``experts``, the layers that any of them adapts."""
        layers = super().target_layers(model)
        if not self.experts:
            return layers
        for folder in map(Path, self.experts):
            require_target_layers(folder, layers)
        used = {name for folder in self.experts for name in peft_modules(Path(folder))}
        return {name: layer for name, layer in layers.items() if name in used}

    def adapter(self, parts: Parts) -> LoRAAdapter:
        adapter = super().adapter(parts)
        loras = [read_peft(Path(folder)) for folder in self.experts]
        self.check_experts(loras)
        for i, lora in enumerate(loras):
            adapter.load_expert(i, lora)
        return adapter

    def check_experts(self, loras: Sequence[PeftLoRA]) -> None:
        """Raises: UsageError for LoRAs from folders that the method cannot combine. Most methods can combine any."""

    def stage_key(self, stage: str, tasks: Sequence[str]) -> str | None:
        return self.alone_key(stage, self.rank) if stage in tasks and not self.experts else None

    def kept_stages(self, tasks: Sequence[str]) -> Sequence[str]:
        return () if self.experts else tasks

    def within(self: Self, budget: Budget, n_tasks: int) -> Self:
        """The method itself with LoRAs from folders, whose rank is as it is. Raises: BudgetError."""
        if self.experts:
            return cast("Self", AdapterMethod.within(self, budget, n_tasks))
        return super().within(budget, n_tasks)
