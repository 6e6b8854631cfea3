"""The state that an adapter's layers share: off, routed, folded or merged, and the task of each sequence or token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from harness.transfer import to_device
from methods.layers.prepared import stamp


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
        now, entry = stamp(inputs), self._values.get(key)
        if entry is None or entry.stamp != now:
            held = [*inputs, *(tensor.detach() for tensor in inputs)]
            entry = self._values[key] = _Cached(value=compute(), stamp=now, held=held)
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
        example_labels: LongTensor (n_examples,), the label of each example; 0 for those of other micro-batches.
        present_tasks: ``present`` as a LongTensor on the device.
        step: stage and number of the optimiser step, for noise; None before the first step.
        is_open: True inside a context. is_nested: True inside ``nested``.
        rank_multiple: ranks are padded to a multiple of it in training; None: where the device needs it, see
            ``methods.layers.casting``.
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
        self.example_labels: Tensor | None = None
        self.present_tasks: Tensor | None = None
        self.step: tuple[str, int] | None = None
        self.is_open = False
        self.is_nested = False
        self.rank_multiple: int | None = None
        self.cache = Cache()
        self._one_hot: dict[object, Tensor] = {}
        self._zeros: dict[object, Tensor] = {}

    def own(self, dtype: torch.dtype) -> Tensor:
        """(M, tasks), 1 for the task of each label. Its product with a row for each task selects the labels' rows.

        The gradient of this product is a product too. That of an index sorts the labels and adds one after another.
        """
        assert self.labels is not None
        return self._own("tasks", self.labels, self.n_tasks, dtype)

    def own_of_present(self, dtype: torch.dtype, columns: int | None = None) -> Tensor:
        """(M, present tasks), 1 for the task of each label. columns: with more of them, which are 0."""
        assert self.position is not None
        return self._own("present", self.position, len(self.present) if columns is None else columns, dtype)

    def own_of_examples(self, dtype: torch.dtype) -> Tensor:
        """(M, n_examples), 1 for the example of each label."""
        assert self.examples is not None
        return self._own("examples", self.examples, self.n_examples, dtype)

    def _own(self, kind: str, labels: Tensor, n: int, dtype: torch.dtype) -> Tensor:
        if torch.compiler.is_compiling():  # What is in the cache would be a constant of the graph.
            return _one_hot(labels, n, dtype)
        key = (kind, n, dtype)
        if key not in self._one_hot:
            self._one_hot[key] = _one_hot(labels, n, dtype)
        return self._one_hot[key]

    def zeros(self, like: Tensor, rows: int, columns: int) -> Tensor:
        """(rows, columns) of zeros in the dtype and on the device of another tensor; not to be written to."""
        if torch.compiler.is_compiling():
            return like.new_zeros(rows, columns)
        key = (rows, columns, like.dtype, like.device)
        if key not in self._zeros:
            self._zeros[key] = torch.zeros(rows, columns, dtype=like.dtype, device=like.device)
        return self._zeros[key]

    def cached(self, key: object, inputs: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """As ``Cache.get``, for values that are kept as long as this route is open."""
        return self.cache.get(key, inputs, compute)

    @contextmanager
    def routed(self, labels: Tensor, device: torch.device, examples: Tensor | None = None) -> Iterator[None]:
        """Sequences (labels of shape (B,)) or tokens ((B, S)) use their tasks' shares until the context closes.

        On every device the labels are copied: writing to ``labels`` afterwards does not change an open route.

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
        labels_are_of_tokens, labels, examples = labels.dim() == 2, labels.reshape(-1), examples.reshape(-1)
        n_examples = int(examples.max()) + 1
        of_examples = labels.new_zeros(n_examples).scatter_(0, examples.to(labels.device), labels)
        parts = [labels, position.reshape(-1), examples, of_examples, tasks]
        sizes = [len(part) for part in parts]
        with self.enter(State.ROUTED):
            copied = to_device(torch.cat([part.long().cpu() for part in parts]), device)
            self.labels, self.position, self.examples, self.example_labels, self.present_tasks = copied.split(sizes)  # type: ignore[no-untyped-call]
            self.n_examples, self.present, self.tokens = n_examples, present, labels_are_of_tokens
            self.cache, self._one_hot = Cache(), {}
            try:
                yield
            finally:
                self.labels, self.position, self.present, self.tokens = None, None, (), False
                self.examples, self.example_labels, self.present_tasks, self.n_examples = None, None, None, 0
                self.cache, self._one_hot = Cache(), {}

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
        self.state, self.is_nested = State.OFF if labels is None else State.ROUTED, True
        if labels is not None:
            self.labels, self.tokens = labels, False
            self.present_tasks, self.position = torch.unique(labels, return_inverse=True)
            self.present, self._one_hot = tuple(self.present_tasks.tolist()), {}
        try:
            yield
        finally:
            vars(self).update(before)


def _one_hot(labels: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """(M, n) from labels (M,)."""
    return (labels[:, None] == torch.arange(n, device=labels.device)).to(dtype)
