"""The base model as it is: the floor that every trained method has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from harness.method import Adapter, Method, Trainer, Trait
from methods.layers.adapter import LoRAAdapter, Parts
from methods.layers.routing import Route


@dataclass(frozen=True, kw_only=True)
class NoFinetune(Method):
    """An adapter without layers; nothing is trained."""

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.FOLDS})  # into nothing at all
    summary: ClassVar[str] = "the base model as it is"

    def attach(self, model: nn.Module, tasks: Sequence[str], *, seed: int) -> LoRAAdapter:
        route = Route(len(tasks))
        return LoRAAdapter(Parts(model=model, tasks=tuple(tasks), layers={}, modules={}, route=route, seed=seed))

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """There is nothing to train."""
