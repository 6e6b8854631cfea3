"""The number of parameters of a run's adapters: all that are stored, and those that one task uses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import NotFoldable
from harness.method import Adapter, Method, Trait
from harness.store.record import Parameters

if TYPE_CHECKING:
    from harness.models.loading import LoadedModel


@dataclass(frozen=True, kw_only=True)
class Size:
    """Parameters of one adapter. stored: all. active: those of the largest folded LoRA of a task."""

    stored: int
    active: int


def size_of(method: Method, adapter: Adapter, tasks: Sequence[str]) -> Size:
    """The size of an adapter that is attached to a model, for the tasks of its cluster."""
    stored = sum(p.numel() for p in adapter.trainable().values())
    active = stored
    if Trait.FOLDS in method.traits:
        # An ablation of a method that folds may not fold; then every expert is active for each task.
        with suppress(NotFoldable):
            folded = [adapter.fold(t).values() for t in tasks]
            active = max((sum(f.a.numel() + f.b.numel() for f in factors) for factors in folded), default=0)
    return Size(stored=stored, active=active)


def total(sizes: Sequence[Size], loaded: LoadedModel | None) -> Parameters:
    """The parameters of all clusters, in percent of the base model too; each task uses the adapter of one cluster."""
    if loaded is None:
        return Parameters(stored=0, active=0, base=None, percent=None)
    stored = sum(s.stored for s in sizes)
    base = loaded.n_parameters
    return Parameters(
        stored=stored, active=max((s.active for s in sizes), default=0), base=base, percent=100 * stored / base
    )
