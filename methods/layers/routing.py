"""The state that an adapter's layers share: off, routed, folded or merged, and the task of each sequence or token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class State(Enum):
    """The states of an adapted layer: what it adds to the output of its base layer."""

    OFF = "off"  # Nothing is added.
    ROUTED = "routed"  # Each sequence or token gets its own share.
    FOLDED = "folded"  # One plain LoRA is added.
    MERGED = "merged"  # Nothing is added, because the LoRA is in the base layer's weight.


@dataclass(frozen=True, kw_only=True)
class _Cached:
    """A value, with what identifies the tensors that it was computed from.

    stamp: the identity, the number of writes and the address of each of these tensors.
    held: these tensors and their storage, kept alive so that no other tensor gets their identity or their address.
    """

    value: Tensor
    stamp: Sequence[tuple[int, int, int]]
    held: Sequence[Tensor]


class Cache:
    """Values computed from tensors, by key: each is computed again only after one of its tensors has changed."""

    def __init__(self) -> None:
        self._values: dict[object, _Cached] = {}

    def get(self, key: object, inputs: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """``compute()`` without a gradient, called once as long as its inputs stay unchanged.

        Writes through ``Tensor.data`` are not noticed, as they are not by autograd.
        """
        if any(tensor.is_inference() for tensor in inputs):  # Writes to inference tensors are not counted.
            return compute()
        stamp = [(id(tensor), tensor._version, tensor.data_ptr()) for tensor in inputs]
        entry = self._values.get(key)
        if entry is None or entry.stamp != stamp:
            held = [*inputs, *(tensor.detach() for tensor in inputs)]
            entry = self._values[key] = _Cached(value=compute(), stamp=stamp, held=held)
        return entry.value


class Route:
    """The state of one adapter, read by its layers and changed only by the contexts below, which do not nest.

    Attributes:
        state: routed (without labels) outside every context.
        labels: LongTensor (M,), a task for each of M sequences, or for each token of packed sequences; None outside
            ``routed``.
        tokens: True if ``labels`` are those of tokens.
        present: the tasks that occur in ``labels``, ascending.
        position: LongTensor (M,), the index in ``present`` of each label.
        examples: LongTensor (M,), the position in the step of the example of each label, for noise.
        n_examples: 1 + the largest of these positions.
        step: stage and number of the optimiser step, for noise; None before the first step.
        is_open: True inside a context.
        cache: values that ``cached`` computed on this route.
    """

    def __init__(self, n_tasks: int) -> None:
        self.n_tasks = n_tasks
        self.state = State.ROUTED
        self.labels: Tensor | None = None
        self.tokens = False
        self.present: tuple[int, ...] = ()
        self.position: Tensor | None = None
        self.examples: Tensor | None = None
        self.n_examples = 0
        self.step: tuple[str, int] | None = None
        self.is_open = False
        self.cache = Cache()

    def cached(self, key: object, inputs: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """As ``Cache.get``, for values that are kept as long as this route is open."""
        return self.cache.get(key, inputs, compute)

    @contextmanager
    def routed(self, labels: Tensor, device: torch.device, examples: Tensor | None = None) -> Iterator[None]:
        """Sequences (labels of shape (B,)) or tokens ((B, S)) use their tasks' shares until the context closes.

        examples: of the shape of ``labels``, see ``StepRouting.route``.
        """
        if labels.dim() not in (1, 2) or not labels.numel() or labels.dtype.is_floating_point:
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}; give a LongTensor with a task for each "
                "sequence (B,) or each token (B, S)"
            )
        tasks, position = torch.unique(labels.reshape(-1), return_inverse=True)
        present = tuple(tasks.tolist())
        if present[0] < 0 or present[-1] >= self.n_tasks:
            raise ValueError(f"labels are {present[0]}..{present[-1]}, but the tasks are 0..{self.n_tasks - 1}")
        if examples is None:
            examples = torch.arange(len(labels)).view(-1, *[1] * (labels.dim() - 1)).expand(labels.shape)
        with self.enter(State.ROUTED):
            self.labels, self.position = labels.reshape(-1).to(device), position.to(device)
            self.examples, self.n_examples = examples.reshape(-1).to(device), int(examples.max()) + 1
            self.present, self.tokens = present, labels.dim() == 2
            self.cache = Cache()
            try:
                yield
            finally:
                self.labels, self.position, self.present, self.tokens = None, None, (), False
                self.examples, self.n_examples = None, 0
                self.cache = Cache()

    @contextmanager
    def enter(self, state: State) -> Iterator[None]:
        """Set a state until the context closes."""
        if self.is_open:
            raise RuntimeError(
                f"the adapter is already {self.state.value}: route, off and apply do not nest; leave the first context "
                "(after backward) before entering the next"
            )
        self.is_open, self.state = True, state
        try:
            yield
        finally:
            self.is_open, self.state = False, State.ROUTED

    @contextmanager
    def nested(self, labels: Tensor | None) -> Iterator[None]:
        """Inside another context, for a pass that reads hidden states: off, or routed by other labels (B,)."""
        before = dict(vars(self))
        self.state = State.OFF if labels is None else State.ROUTED
        if labels is not None:
            self.labels, self.tokens = labels, False
            tasks, self.position = torch.unique(labels, return_inverse=True)
            self.present = tuple(tasks.tolist())
        try:
            yield
        finally:
            vars(self).update(before)
