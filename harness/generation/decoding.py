"""Greedy decoding with a cache of keys and values: sequences take turns in a fixed number of slots.

Shapes: N sequences, S slots (sequences that share a forward pass), R the largest limit of new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from torch import Tensor

from harness.generation.cache import Tokens, new_cache, supports_refill
from harness.generation.graph import Record, RecordedStep, Work
from harness.models.loading import LoadedModel
from harness.transfer import to_device

Enter = Callable[[Tensor], AbstractContextManager[object]]
"""Gives the context (a route) for a forward pass over some sequences; a LongTensor of their indices, on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When decoding checks, refills and begins. No setting changes a generated token.

    Args:
        steps_per_check: decoding steps between two checks for finished sequences. None: 1 on a CPU, 8 elsewhere, where
            a check makes the host wait for the device.
        n_groups: slots are refilled in groups of 1 / n_groups of them, so that at most that part of them waits.
        prefill_tokens: a first pass reads more than one group while it has no more padded tokens than this; a smaller
            pass takes longer to launch than to compute.
        record: records a step as a graph where the cache allows it. Give it only if ``enter`` gives every sequence the
            same context, since a recorded step does not follow its changes.
    """

    steps_per_check: int | None = None
    n_groups: int = 8
    prefill_tokens: int = 1024
    record: Record | None = None


DEFAULT: Final = Schedule()


@torch.no_grad()
def decode(
    loaded: LoadedModel,
    prompts: Sequence[Tokens],
    limits: Sequence[int],
    enter: Enter,
    *,
    slots: int | None = None,
    together: bool = False,
    on_finished: Callable[[int], object] = lambda n: None,
    schedule: Schedule = DEFAULT,
) -> list[list[int]]:
    """The greedy continuation of each prompt, up to and including its first eos token, or of ``limit`` tokens.

    At most ``slots`` sequences share a forward pass. When one has finished, the next one takes its slot if the model's
    cache supports that; otherwise the next ``slots`` sequences begin when all have finished. Once none is waiting,
    free slots are removed from the batch where the weights are float32 or better (a smaller batch gives the same
    tokens). In lower precision they stay, so that the shape of every forward pass, and with it the rounding, does not
    depend on when sequences finish.

    Args:
        prompts: at least one token each; neighbours of similar length are read together.
        limits: largest number of new tokens for each prompt, at least 1.
        enter: entered again whenever other sequences take over slots.
        slots: default: one for each prompt.
        together: no sequence begins before all of those before it have finished.
        on_finished: called with the number of sequences that have finished since its last call.
    """
    n = len(prompts)
    slots = min(slots or n, n)
    refills = not together and supports_refill(loaded)
    group = -(-slots // schedule.n_groups) if refills else slots
    if slots < n:
        slots -= slots % group  # A slot beyond the last whole group would never be refilled.
    span = n if refills else slots
    continuations: list[list[int]] = []
    for first in range(0, n, span):
        plan = BatchPlan(
            prompts=prompts[first : first + span],
            limits=limits[first : first + span],
            n_slots=min(slots, n - first),
            group_size=group,
            compacts=loaded.dtype.itemsize >= 4,
            prefill_tokens=schedule.prefill_tokens,
            steps_per_check=schedule.steps_per_check or (1 if loaded.device.type == "cpu" else 8),
        )
        continuations += _Decoder(loaded, plan, partial(_shifted, enter, first), on_finished, schedule.record).run()
    return continuations


def _shifted(enter: Enter, first: int, rows: Tensor) -> AbstractContextManager[object]:
    return enter(rows + first)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The N sequences of a batch, and when they begin.

    Args:
        prompts, limits: of the N sequences, in the order in which they begin.
        n_slots: S, sequences that share a forward pass.
        group_size: prompts that are read together when slots are refilled.
        compacts: empty slots are removed from the batch once no sequence is waiting.
        prefill_tokens, steps_per_check: as in ``Schedule``.
    """

    prompts: Sequence[Tokens]
    limits: Sequence[int]
    n_slots: int
    group_size: int
    compacts: bool
    prefill_tokens: int
    steps_per_check: int

    def refills(self, n_begun: int, n_free: int) -> bool:
        """Whether enough slots are free for the next group."""
        waiting = len(self.prompts) - n_begun
        return bool(waiting) and n_free >= min(self.group_size, waiting)

    def n_next(self, n_begun: int) -> int:
        """How many sequences begin next: a group, and in the first passes as many as keep a pass from being small.

        It depends only on the plan, never on when sequences finish.
        """
        unused = max(0, self.n_slots - n_begun)
        longest = max(map(len, self.prompts[n_begun:]))
        first = min(unused, self.prefill_tokens // longest)
        return min(max(self.group_size, first), len(self.prompts) - n_begun)

    def removes(self, n_begun: int, n_free: int, n_slots: int) -> bool:
        """Whether to remove the free ones of the n_slots that are left, which costs a copy of the cache."""
        return self.compacts and n_begun == len(self.prompts) and 4 * n_free >= n_slots


@dataclass(kw_only=True)
class SlotState:
    """The state of the S slots, as tensors on the model's device (``row_of_slot_cpu`` apart).

    row_of_slot: (S,) int64, the index of the sequence in each slot. row_of_slot_cpu: the same on the CPU.
    n_generated: (S,) int64, tokens generated for that sequence.
    last_token: (S,) int64, the last one of them.
    finished: (S,) bool, the sequence has ended, or the slot has not been used yet.
    """

    row_of_slot_cpu: Tensor
    row_of_slot: Tensor
    n_generated: Tensor
    last_token: Tensor
    finished: Tensor

    @classmethod
    def empty(cls, n_slots: int, device: torch.device) -> SlotState:
        zeros = torch.zeros(n_slots, dtype=torch.long, device=device)
        return cls(
            row_of_slot_cpu=torch.zeros(n_slots, dtype=torch.long),
            row_of_slot=zeros,
            n_generated=zeros.clone(),
            last_token=zeros.clone(),
            finished=torch.ones(n_slots, dtype=torch.bool, device=device),
        )

    def __len__(self) -> int:
        return len(self.row_of_slot_cpu)

    def select(self, slots: Tensor) -> SlotState:
        """The state of only these slots, given as a LongTensor on the CPU."""
        on_device = to_device(slots, self.row_of_slot.device)
        return SlotState(
            row_of_slot_cpu=self.row_of_slot_cpu[slots],
            row_of_slot=self.row_of_slot[on_device],
            n_generated=self.n_generated[on_device],
            last_token=self.last_token[on_device],
            finished=self.finished[on_device],
        )


@dataclass(kw_only=True)
class _Progress:
    """Counts on the host. n_begun: sequences that have or had a slot. n_active: those that are being decoded.

    steps_left: steps that the sequence that began last may still need.
    """

    n_begun: int = 0
    n_active: int = 0
    steps_left: int = 0


@dataclass
class _Decoder:
    """Decodes the sequences of one plan."""

    loaded: LoadedModel
    plan: BatchPlan
    enter: Enter
    on_finished: Callable[[int], object]
    record: Record | None = None
    progress: _Progress = field(default_factory=_Progress)

    def __post_init__(self) -> None:
        plan, device = self.plan, self.loaded.device
        self.n, self.room = len(plan.prompts), max(plan.limits)
        self.cache = new_cache(self.loaded, plan.n_slots, max(map(len, plan.prompts)), self.room)
        self.slots = SlotState.empty(plan.n_slots, device)
        self.eos = to_device(torch.tensor(self.loaded.eos_ids), device)
        self.max_new_tokens = to_device(torch.tensor(plan.limits), device)  # (N,)
        # (N + 1, R): row N takes the tokens that the slots of finished sequences still generate.
        self.generated = torch.full((self.n + 1, self.room), self.loaded.eos_ids[0], device=device)

    def run(self) -> list[list[int]]:
        """The tokens of each sequence."""
        # Only this call holds the step. As an attribute it would be a reference cycle, which keeps a batch's memory
        # until the garbage collector runs.
        advance: Work = self._advance
        if self.record is not None and self.cache.is_static:
            advance = RecordedStep(advance, self.record)
        while True:
            free = self._free_slots()
            if self.plan.refills(self.progress.n_begun, len(free)):
                self._refill(free, advance)
            elif not self.progress.n_active:
                rows = self.generated[: self.n].tolist()
                limits = self.plan.limits
                return [_until_eos(row[:n], self.loaded.eos_ids) for row, n in zip(rows, limits, strict=True)]
            else:
                if self.plan.removes(self.progress.n_begun, len(free), len(self.slots)):
                    self._compact(free)
                with self.enter(self.slots.row_of_slot_cpu):
                    self._step_until_change(advance)

    def _free_slots(self) -> list[int]:
        """The slots whose sequence has finished, or that have not been used; reports those that have finished since."""
        finished = self.slots.finished.tolist()
        before, self.progress.n_active = self.progress.n_active, finished.count(False)
        if self.progress.n_active < before:
            self.on_finished(before - self.progress.n_active)
        return [slot for slot, free in enumerate(finished) if free]

    def _refill(self, free: list[int], advance: Work) -> None:
        """Read the next prompts into the first free slots, and generate the first token of each."""
        begun = self.progress.n_begun
        rows = torch.arange(begun, begun + self.plan.n_next(begun))
        slots = torch.tensor(free[: len(rows)])
        with self.enter(rows):
            tokens = self.cache.prefill(slots, [self.plan.prompts[i] for i in rows.tolist()]).argmax(-1)
            self._begin(slots, rows, tokens)
            if len(rows) == len(self.slots):  # All slots were refilled, so the route of the next steps is the same.
                self._step_until_change(advance)

    def _begin(self, slots: Tensor, rows: Tensor, tokens: Tensor) -> None:
        """Put sequences with their first tokens into slots; slots, rows, tokens: LongTensors of equal length."""
        state = self.slots
        state.row_of_slot_cpu[slots] = rows
        slots, rows = to_device(torch.stack([slots, rows]), self.eos.device)
        ones = torch.ones_like(rows)
        state.row_of_slot[slots], state.last_token[slots], state.n_generated[slots] = rows, tokens, ones
        self.generated[rows, 0] = tokens
        state.finished[slots] = self._is_last(tokens, state.n_generated[slots], rows)
        self.progress.n_begun += len(rows)
        self.progress.n_active += len(rows)
        self.progress.steps_left = self.room - 1

    def _step_until_change(self, advance: Work) -> None:
        """Generate token by token until slots are refilled or removed, or every sequence has finished.

        advance: the device's part of a step, ``_advance`` or its recording.
        """
        state, progress = self.slots, self.progress
        while True:
            steps = min(self.plan.steps_per_check, progress.steps_left)
            progress.steps_left -= steps
            for _ in range(steps):
                self.cache.begin_step()
                advance()
            free, begun = len(self._free_slots()), progress.n_begun
            if not progress.n_active or self.plan.refills(begun, free) or self.plan.removes(begun, free, len(state)):
                return

    def _advance(self) -> None:
        """The device's part of a step. It writes to the same tensors every time, so that it can be recorded."""
        state = self.slots
        active = ~state.finished
        state.last_token.copy_(self.cache.step(state.last_token, active).argmax(-1))
        row = state.row_of_slot.masked_fill(state.finished, self.n)
        self.generated[row, state.n_generated.clamp_max(self.room - 1)] = state.last_token
        state.n_generated += active
        state.finished |= self._is_last(state.last_token, state.n_generated, state.row_of_slot)

    def _is_last(self, tokens: Tensor, counts: Tensor, rows: Tensor) -> Tensor:
        """Whether a sequence ends with its token: an eos, or the last one that its limit allows."""
        return (tokens[:, None] == self.eos).any(1) | (counts >= self.max_new_tokens[rows])

    def _compact(self, free: list[int]) -> None:
        """Remove free slots from the batch."""
        removed = set(free)
        left = torch.tensor([slot for slot in range(len(self.slots)) if slot not in removed])
        self.cache.select(left)
        self.slots = self.slots.select(left)


def _until_eos(tokens: list[int], eos: Sequence[int]) -> list[int]:
    ends = (i for i, token in enumerate(tokens) if token in eos)
    return tokens[: next(ends, len(tokens) - 1) + 1]
