"""The number of parameters of a run's adapters: all that are stored, and those that one task uses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import NotFoldable
from harness.linear_layers import linear_layers
from harness.method import Adapter, Method, Trait
from harness.store.record import Parameters

if TYPE_CHECKING:
    from torch import nn

    from harness.models.loading import LoadedModel


@dataclass(frozen=True, kw_only=True)
class Size:
    """Parameters of one adapter. stored: all. active: those of the largest folded LoRA of a task.

    adapted: the share (0 to 1) of the model's linear weights that it reaches; None if it replaces no layer.
    """

    stored: int
    active: int
    adapted: float | None = None


def size_of(method: Method, adapter: Adapter, tasks: Sequence[str], model: nn.Module) -> Size:
    """The size of an adapter that is attached to ``model``, for the tasks of its cluster."""
    stored = sum(p.numel() for p in adapter.trainable().values())
    active = stored
    if Trait.FOLDS in method.traits:
        # An ablation of a method that folds may not fold; then every expert is active for each task.
        with suppress(NotFoldable):
            folded = [adapter.fold(t).values() for t in tasks]
            active = max((sum(f.a.numel() + f.b.numel() for f in factors) for factors in folded), default=0)
    return Size(stored=stored, active=active, adapted=linear_layers(model).adapted(model))


def total(sizes: Sequence[Size], loaded: LoadedModel | None) -> Parameters:
    """The parameters of all clusters, in percent of the base model too; each task uses the adapter of one cluster."""
    if loaded is None:
        return Parameters(stored=0, active=0, base=None, percent=None)
    stored = sum(s.stored for s in sizes)
    base = loaded.n_parameters
    adapted = [100 * s.adapted for s in sizes if s.adapted is not None]
    return Parameters(
        stored=stored,
        active=max((s.active for s in sizes), default=0),
        base=base,
        percent=100 * stored / base,
        adapted_percent=min(adapted, default=None),
    )


def describe_adapted(model: nn.Module) -> str | None:
    """What the adapter on a model reaches, if that is not every linear weight that a text goes through; else None."""
    found = linear_layers(model)
    share = found.adapted(model)
    if share is None or share == 1:
        return None
    rest = found.describe()
    return (
        f"the adapter reaches {100 * share:.3g} % of the model's linear weights "
        f"({len(found.changed(model))} of {len(found.layers)} linear layers)" + (f": {rest}" if rest else "")
    )
