"""Values that the layers of one forward share, computed together when a route is opened.

A kernel launch costs a GPU's host as much for the small tensors of a gate as for a large product. Gates of all layers
are therefore computed in one product each, before the first layer: not inside it, where gradient checkpointing would
compute them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

V = TypeVar("V", bound=object)


def stamp(tensors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """The identity, the number of writes and the address of each tensor. ``Tensor.data`` hides writes."""
    return [(id(tensor), tensor._version, tensor.data_ptr()) for tensor in tensors]


class Prepared(Generic[V]):
    """One layer's or one gate's part of such a value, with its graph.

    Args:
        value: the part, a tensor or several.
        uses: how often one forward reads it. A graph serves one backward pass, so that a second forward on the same
            route computes its own value.
        sources: gives the tensors that it was computed from. Once one of them has been written to or replaced, the
            value is not used any more.
    """

    def __init__(self, value: V, uses: int, sources: Callable[[], Sequence[Tensor]]) -> None:
        self.value, self.uses, self.sources = value, uses, sources
        self.stamp = stamp(sources())

    def take(self) -> V | None:
        """The value, or None if the caller must compute it: another forward, no gradient, or changed parameters."""
        if not torch.is_grad_enabled():
            return None
        if torch.compiler.is_compiling():
            return self.value
        in_backward = torch._C._current_graph_task_id() != -1  # A checkpointed layer repeats its forward there.
        if not in_backward:
            if not self.uses or stamp(self.sources()) != self.stamp:
                return None
            self.uses -= 1
        return self.value
