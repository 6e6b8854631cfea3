"""The base model without training: the baseline that every trained method should beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from harness.method import AdapterMethod, Ranks, Trait
from methods.layers.adapter import LoRAAdapter, Parts
from methods.layers.routing import Route


@dataclass(frozen=True, kw_only=True)
class NoFinetune(AdapterMethod):
    """An adapter without layers and without parameters; nothing is trained."""

    version: ClassVar[int] = 1
    trains: ClassVar[bool] = False
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.FOLDS})  # A fold has no factors.
    summary: ClassVar[str] = "the base model as it is"

    def attach(self, model: nn.Module, tasks: Sequence[str], *, seed: int) -> LoRAAdapter:
        route = Route(len(tasks))
        return LoRAAdapter(Parts(model=model, tasks=tuple(tasks), layers={}, modules={}, route=route, seed=seed))

    def ranks(self, n_tasks: int) -> Ranks:
        return Ranks(stored=0, active=0)
