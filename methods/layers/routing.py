"""The state that an adapter's layers share: off, routed, folded or merged, and which task each row or token is of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class State(Enum):
    """What an adapted layer adds to its base's output."""

    OFF = "off"  # nothing
    ROUTED = "routed"  # each row's or token's own share
    FOLDED = "folded"  # one plain LoRA
    MERGED = "merged"  # nothing: the LoRA is in the base's weight


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A value, and of the tensors that it was made from: which they are, how often written to, and where they lie.

    held: those tensors and what they looked at, so that no other tensor gets their id or their place in memory.
    """

    value: Tensor
    stamp: Sequence[tuple[int, int, int]]
    held: Sequence[Tensor]


class Route:
    """Owned by one adapter, read by its layers; changed only by the contexts below, which do not nest.

    Attributes:
        state: routed (without labels) outside of every context.
        labels: LongTensor (M,), a task for each of M rows, or for each token of packed rows; None outside ``routed``.
        tokens: True where ``labels`` are of tokens.
        present: the tasks that occur in ``labels``, ascending.
        place: LongTensor (M,), the index in ``present`` of each label.
        step: stage and number of the optimiser step, for noise; None before the first.
    """

    def __init__(self, n_tasks: int) -> None:
        self.n_tasks = n_tasks
        self.state = State.ROUTED
        self.labels: Tensor | None = None
        self.tokens = False
        self.present: tuple[int, ...] = ()
        self.place: Tensor | None = None
        self.step: tuple[str, int] | None = None
        self._open = False
        self._kept: dict[object, _Kept] = {}

    def kept(self, key: object, sources: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """``make()``, without a gradient: once in the life of a route while ``sources`` stay as they are.

        What is written through ``Tensor.data`` goes unseen, as it does by autograd.
        """
        if any(source.is_inference() for source in sources):  # nobody counts what is written to them
            return make()
        stamp = [(id(source), source._version, source.data_ptr()) for source in sources]
        found = self._kept.get(key)
        if found is None or found.stamp != stamp:
            held = [*sources, *(source.detach() for source in sources)]
            found = self._kept[key] = _Kept(value=make(), stamp=stamp, held=held)
        return found.value

    @contextmanager
    def routed(self, labels: Tensor, device: torch.device) -> Iterator[None]:
        """Rows (labels of shape (B,)) or tokens ((B, S)) use the shares of their tasks until the context closes."""
        if labels.dim() not in (1, 2) or not labels.numel() or labels.dtype.is_floating_point:
            raise ValueError(
                f"a route is a LongTensor of rows (B,) or tokens (B, S); got {labels.dtype} of {tuple(labels.shape)}"
            )
        found, place = torch.unique(labels.reshape(-1), return_inverse=True)
        present = tuple(found.tolist())
        if present[0] < 0 or present[-1] >= self.n_tasks:
            raise ValueError(f"a route to task {present[0]}..{present[-1]}, but the tasks are 0..{self.n_tasks - 1}")
        with self.within(State.ROUTED):
            self.labels, self.place = labels.reshape(-1).to(device), place.to(device)
            self.present, self.tokens = present, labels.dim() == 2
            self._kept = {}
            try:
                yield
            finally:
                self.labels, self.place, self.present, self.tokens = None, None, (), False
                self._kept = {}

    @contextmanager
    def within(self, state: State) -> Iterator[None]:
        """Be in a state until the context closes."""
        if self._open:
            raise RuntimeError(
                f"the adapter is {self.state.value} already: route, off and apply do not nest; leave the first context "
                "(after backward) before entering the next"
            )
        self._open, self.state = True, state
        try:
            yield
        finally:
            self._open, self.state = False, State.ROUTED

    @contextmanager
    def aside(self, labels: Tensor | None) -> Iterator[None]:
        """Inside of another context, for a pass that reads hidden states: off, or routed by rows of other labels."""
        before = dict(vars(self))
        self.state = State.OFF if labels is None else State.ROUTED
        if labels is not None:
            self.labels, self.tokens = labels, False
            found, self.place = torch.unique(labels, return_inverse=True)
            self.present = tuple(found.tolist())
        try:
            yield
        finally:
            vars(self).update(before)
