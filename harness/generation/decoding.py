"""Greedy decoding and scoring: what a model says next, on a cache of keys and values, row by row until it ends.

Shapes: S slots (rows that share a forward), R the room for answers (the largest limit), V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from harness.generation.cache import Tokens, accepted, admits_later, new_state, padded, positions
from harness.models.loading import LoadedModel, decoder_start_token

Enter = Callable[[Tensor], AbstractContextManager[object]]  # LongTensor (on the CPU) of the batch's rows that go on
# Steps between two looks at which rows have ended: elsewhere than on the CPU a look makes the host wait.
_LOOK = {"cpu": 1}
_LOOK_ELSEWHERE = 8
_GROUPS = 8  # of rows that are read together: an eighth of the slots waits for the next ones at most
_SMALL = 1024  # tokens: a pass over fewer costs its calls more than its arithmetic


@torch.no_grad()
def decode(
    loaded: LoadedModel,
    prompts: Sequence[Tokens],
    limits: Sequence[int],
    enter: Enter,
    *,
    slots: int | None = None,
    together: bool = False,
    ended: Callable[[int], object] = lambda rows: None,
) -> list[list[int]]:
    """The greedy continuation of each prompt, up to and with its first eos token or of ``limit`` tokens.

    ``slots`` rows at most share a forward. Where a row has ended, the next one takes its slot, if the model's caches
    allow it (else the next ``slots`` rows begin when all have ended). When none wait any more, slots without a row
    leave the batch where the weights are float32 (a smaller batch gives the same texts); in lower precision they
    stay, so that the shapes of every forward, and with them the rounding, do not depend on when rows end.

    Args:
        prompts: rows of at least one token; neighbours of similar length are read together.
        limits: numbers of tokens, at least 1.
        enter: a context in which rows are computed (a route); left and entered again when others take their slots.
        slots: default: as many as there are rows.
        together: no row begins before all of the rows before it have ended.
        ended: told of numbers of rows that have ended, as they do.
    """
    n = len(prompts)
    slots = min(slots or n, n)
    later = not together and admits_later(loaded)
    group = -(-slots // _GROUPS) if later else slots
    if slots < n:
        slots -= slots % group  # a slot that no whole group can take would stay empty
    span = n if later else slots
    texts: list[list[int]] = []
    for first in range(0, n, span):
        mine = slice(first, first + span)
        texts += _Stream(loaded, prompts[mine], limits[mine], slots, group).run(partial(_shifted, enter, first), ended)
    return texts


def _shifted(enter: Enter, first: int, rows: Tensor) -> AbstractContextManager[object]:
    return enter(rows + first)


class _Stream:
    """Rows that go through the slots in their order, ``group`` of them at a time."""

    def __init__(
        self, loaded: LoadedModel, prompts: Sequence[Tokens], limits: Sequence[int], slots: int, group: int
    ) -> None:
        n, room, device = len(prompts), max(limits), loaded.device
        slots = min(slots, n)
        self.prompts, self.limits, self.group, self.eos = prompts, limits, group, loaded.eos_ids
        self.state = new_state(loaded, slots, max(map(len, prompts)), room)
        self.shrinks = loaded.dtype.itemsize >= 4
        self.look = _LOOK.get(device.type, _LOOK_ELSEWHERE)
        self.slots, self.begun, self.going = slots, 0, 0  # the last two: rows that have or had a slot; on their way
        self.left = 0  # steps that the row that began last may still need
        self.rows = torch.zeros(slots, dtype=torch.long)  # of each slot, on the CPU
        self.row = torch.zeros(slots, dtype=torch.long, device=device)  # the same
        self.count = torch.zeros(slots, dtype=torch.long, device=device)  # tokens of that row
        self.token = torch.zeros(slots, dtype=torch.long, device=device)  # its last one
        self.over = torch.ones(slots, dtype=torch.bool, device=device)
        self.most = torch.tensor(limits, device=device)
        self.ends = torch.tensor(loaded.eos_ids, device=device)
        self.made = torch.full((n + 1, room), loaded.eos_ids[0], device=device)  # the last row: what no one wants

    def run(self, enter: Enter, ended: Callable[[int], object]) -> list[list[int]]:
        while True:
            free = self._free(ended)
            if self._admits(free):
                self._admit(free, enter, ended)
            elif not self.going:
                return [
                    _until(text[:most], self.eos) for text, most in zip(self.made.tolist(), self.limits, strict=False)
                ]
            else:
                if self._outweighs(free):
                    self._leave(free)
                with enter(self.rows):
                    self._go_on(ended)

    def _free(self, ended: Callable[[int], object]) -> list[int]:
        """The slots whose row has ended, or that have had none."""
        over = self.over.tolist()
        before, self.going = self.going, over.count(False)
        if self.going < before:
            ended(before - self.going)
        return [slot for slot, gone in enumerate(over) if gone]

    def _admits(self, free: list[int]) -> bool:
        waiting = len(self.prompts) - self.begun
        return bool(waiting) and len(free) >= min(self.group, waiting)

    def _outweighs(self, free: list[int]) -> bool:
        """Whether to go on without these slots: each time costs a copy of the cache."""
        return self.shrinks and self.begun == len(self.prompts) and 4 * len(free) >= len(self.rows)

    def _size(self) -> int:
        """How many rows begin next: a group, or at the start so many as make a pass that is not too small.

        It follows from the plan alone, never from when rows end.
        """
        unused = max(0, self.slots - self.begun)
        first = min(unused, _SMALL // max(len(p) for p in self.prompts[self.begun :])) if unused else 0
        return min(max(self.group, first), len(self.prompts) - self.begun)

    def _admit(self, free: list[int], enter: Enter, ended: Callable[[int], object]) -> None:
        """Read the next prompts, into the first free slots; the first token of each."""
        rows = torch.arange(self.begun, self.begun + self._size())
        slots = torch.tensor(free[: len(rows)])
        with enter(rows):
            first = self.state.admit(slots, [self.prompts[i] for i in rows.tolist()]).argmax(-1)
            self._begin(slots, rows, first)
            if len(rows) == len(self.rows):  # nobody else is on the way: the route is the same
                self._go_on(ended)

    def _begin(self, slots: Tensor, rows: Tensor, first: Tensor) -> None:
        self.rows[slots] = rows
        slots, rows = slots.to(self.row.device), rows.to(self.row.device)
        self.row[slots], self.token[slots], self.count[slots] = rows, first, 1
        self.made[rows, 0] = first
        self.over[slots] = self._is_last(first, self.count[slots], rows)
        self.begun += len(rows)
        self.going += len(rows)
        self.left = self.made.shape[1] - 1

    def _go_on(self, ended: Callable[[int], object]) -> None:
        """Token by token, until rows join or leave."""
        while True:
            steps = min(self.look, self.left)
            self.left -= steps
            for _ in range(steps):
                going = ~self.over
                self.token = self.state.step(self.token, going).argmax(-1)
                wanted = torch.where(going, self.row, len(self.prompts))
                self.made[wanted, self.count.clamp_max(self.made.shape[1] - 1)] = self.token
                self.count += going
                self.over |= self._is_last(self.token, self.count, self.row)
            free = self._free(ended)
            if not self.going or self._admits(free) or self._outweighs(free):
                return

    def _is_last(self, tokens: Tensor, counts: Tensor, rows: Tensor) -> Tensor:
        return (tokens[:, None] == self.ends).any(1) | (counts >= self.most[rows])

    def _leave(self, free: list[int]) -> None:
        gone = set(free)
        stay = torch.tensor([slot for slot in range(len(self.rows)) if slot not in gone])
        self.state.keep(stay)
        self.rows = self.rows[stay]
        stay = stay.to(self.row.device)
        self.row, self.count, self.token, self.over = (x[stay] for x in (self.row, self.count, self.token, self.over))


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """log p(continuation | prompt), natural; greedy: no other continuation of that length has likelier tokens."""

    value: float
    greedy: bool


def log_likelihoods(
    loaded: LoadedModel, prompts: Sequence[Tokens], continuations: Sequence[Tokens], enter: Enter
) -> list[float]:
    """log p(continuation | prompt) of each row: natural logarithms summed over its tokens, in float32."""
    return [found.value for found in likelihoods(loaded, prompts, continuations, enter)]


@torch.no_grad()
def likelihoods(
    loaded: LoadedModel,
    prompts: Sequence[Tokens],
    continuations: Sequence[Tokens],
    enter: Enter,
    *,
    at_once: int | None = None,
) -> list[Likelihood]:
    """The likelihood of each row's continuation, and whether greedy decoding would have written it.

    Args:
        at_once: rows that share a forward; default: all.
    """
    found: list[Likelihood] = []
    n = len(prompts)
    for first in range(0, n, at_once or n):
        mine = slice(first, min(first + (at_once or n), n))
        with enter(torch.arange(mine.start, mine.stop)):
            found += _likelihoods(loaded, prompts[mine], continuations[mine])
    return found


def _likelihoods(loaded: LoadedModel, prompts: Sequence[Tokens], continuations: Sequence[Tokens]) -> list[Likelihood]:
    device, longest = loaded.device, max(map(len, continuations))
    if loaded.encoder_decoder:
        start = decoder_start_token(loaded)
        ids, mask = padded(prompts, device, left=False)
        inputs, _ = padded([[start, *c[:-1]] for c in continuations], device, left=False)
        targets, counted = padded(continuations, device, left=False)
        logits = loaded.model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs, use_cache=False).logits
    else:
        ids, mask = padded([[*p, *c] for p, c in zip(prompts, continuations, strict=True)], device, left=True)
        targets, counted = padded(continuations, device, left=True)
        extra = accepted(loaded.model, position_ids=positions(mask), logits_to_keep=longest + 1)
        logits = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits
        logits = logits[:, -longest - 1 : -1]
    each = torch.log_softmax(logits.float(), -1).gather(-1, targets[..., None])[..., 0]
    greedy = ((logits.argmax(-1) == targets) | (counted == 0)).all(1)
    sums = (each * counted).sum(1)
    return [Likelihood(value=float(v), greedy=g) for v, g in zip(sums.tolist(), greedy.tolist(), strict=True)]


def _until(tokens: list[int], eos: Sequence[int]) -> list[int]:
    ends = (i for i, token in enumerate(tokens) if token in eos)
    return tokens[: next(ends, len(tokens) - 1) + 1]
