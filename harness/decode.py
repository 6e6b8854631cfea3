"""Greedy decoding and scoring of one batch: what a model says next, on a key-value cache, row by row until it ends.

Shapes: B rows, W the width of the padded prompts, R the room for answers (the largest limit), V the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from harness.errors import ModelError
from harness.model import LoadedModel

Tokens = Sequence[int]
Enter = Callable[[Tensor], AbstractContextManager[object]]  # LongTensor (on the CPU) of the batch's rows that go on
# Steps between two looks at which rows have ended: elsewhere than on the CPU a look makes the host wait.
_LOOK = {"cpu": 1}
_LOOK_ELSEWHERE = 8
_PAD = 0  # never seen: padded places are masked


@torch.no_grad()
def decode(loaded: LoadedModel, prompts: Sequence[Tokens], limits: Sequence[int], enter: Enter) -> list[list[int]]:
    """The greedy continuation of each prompt, up to and with its first eos token or of ``limit`` tokens.

    Rows that have ended leave the batch where the weights are float32 (a smaller batch gives them the same texts);
    in lower precision they stay to the end, so that no row's text depends on when another one ends.

    Args:
        prompts: B rows of at least one token.
        limits: B numbers of tokens, at least 1.
        enter: a context in which rows are computed (a route); left and entered again when rows leave the batch.
    """
    room = max(limits)
    state: _State = (_EncoderDecoder if loaded.encoder_decoder else _Causal)(loaded, prompts, room)
    shrink = loaded.dtype.itemsize >= 4
    look = _LOOK.get(loaded.device.type, _LOOK_ELSEWHERE)
    eos = torch.tensor(loaded.eos_ids, device=loaded.device)
    rows = torch.arange(len(prompts))
    on_device = rows.to(loaded.device)
    limit = torch.tensor(limits, device=loaded.device)
    made = torch.full((len(prompts), room), loaded.eos_ids[0], device=loaded.device)
    over = torch.zeros(len(prompts), dtype=torch.bool, device=loaded.device)
    with ExitStack() as route:
        route.enter_context(enter(rows))
        tokens = state.start().argmax(-1)
        for step in range(1, room + 1):
            made[on_device, step - 1] = tokens
            over |= (tokens[:, None] == eos).any(1) | (limit[on_device] <= step)
            if step == room:
                break
            if step % look == 0:
                ended = over.tolist()
                if all(ended):
                    break
                if shrink and 4 * sum(ended) >= len(ended):  # each time costs a copy of the cache
                    route.close()
                    left = torch.tensor([i for i, gone in enumerate(ended) if not gone])
                    rows, on_left = rows[left], left.to(loaded.device)
                    on_device, tokens, over = on_device[on_left], tokens[on_left], over[on_left]
                    state.keep(on_left)
                    route.enter_context(enter(rows))
            tokens = state.step(tokens).argmax(-1)
    return [_until(row[:most], loaded.eos_ids) for row, most in zip(made.tolist(), limits, strict=True)]


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
    loaded: LoadedModel, prompts: Sequence[Tokens], continuations: Sequence[Tokens], enter: Enter
) -> list[Likelihood]:
    """The likelihood of each row's continuation, and whether greedy decoding would have written it."""
    device, longest = loaded.device, max(map(len, continuations))
    with enter(torch.arange(len(prompts))):
        if loaded.encoder_decoder:
            start = _start_token(loaded)
            ids, mask = _padded(prompts, device, left=False)
            inputs, _ = _padded([[start, *c[:-1]] for c in continuations], device, left=False)
            targets, counted = _padded(continuations, device, left=False)
            logits = loaded.model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs, use_cache=False).logits
        else:
            whole = [[*p, *c] for p, c in zip(prompts, continuations, strict=True)]
            ids, mask = _padded(whole, device, left=True)
            targets, counted = _padded(continuations, device, left=True)
            extra = _accepted(loaded.model, position_ids=_positions(mask), logits_to_keep=longest + 1)
            logits = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits
            logits = logits[:, -longest - 1 : -1]
        each = torch.log_softmax(logits.float(), -1).gather(-1, targets[..., None])[..., 0]
        greedy = ((logits.argmax(-1) == targets) | (counted == 0)).all(1)
    sums = (each * counted).sum(1)
    return [Likelihood(value=float(v), greedy=g) for v, g in zip(sums.tolist(), greedy.tolist(), strict=True)]


class _State(Protocol):
    """A batch on its way: what has been read and written so far."""

    def __init__(self, loaded: LoadedModel, prompts: Sequence[Tokens], room: int) -> None: ...

    def start(self) -> Tensor:
        """Read the prompts; the first logits (B, V)."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token (B,) of each row; the next logits (B, V)."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""


class _Causal:
    """Prompts padded on the left, so that every row writes into the same place of the cache."""

    def __init__(self, loaded: LoadedModel, prompts: Sequence[Tokens], room: int) -> None:
        self.model = loaded.model
        self.ids, mask = _padded(prompts, loaded.device, left=True)
        self.padded = min(map(len, prompts)) < self.ids.shape[1]
        self.mask = torch.cat([mask, mask.new_ones(len(prompts), room)], 1)
        self.positions = _positions(self.mask)
        self.cache = _roomy_cache(loaded.model.config, self.mask.shape[1])
        self.memory = _memory_name(loaded)
        self.read = 0

    def start(self) -> Tensor:
        return self._forward(self.ids)

    def step(self, tokens: Tensor) -> Tensor:
        return self._forward(tokens[:, None])

    def keep(self, rows: Tensor) -> None:
        self.mask, self.positions = self.mask[rows], self.positions[rows]
        self.cache.reorder_cache(rows)

    def _forward(self, ids: Tensor) -> Tensor:
        before, self.read = self.read, self.read + ids.shape[1]
        places = self.positions[:, before : self.read]
        mask = self.mask[:, : self.read] if self.padded else None
        if self.memory == "cache_params" and before:  # a recurrent state: the mask is of the new tokens alone
            mask = None
        extra = _accepted(self.model, position_ids=places, logits_to_keep=1)
        extra[self.memory] = self.cache
        out = self.model(input_ids=ids, attention_mask=mask, use_cache=True, **extra)
        return _last(out)


class _EncoderDecoder:
    """The encoder reads the prompts once, padded on the right; the decoder starts from its start token."""

    def __init__(self, loaded: LoadedModel, prompts: Sequence[Tokens], room: int) -> None:
        self.model = loaded.model
        self.ids, self.mask = _padded(prompts, loaded.device, left=False)
        self.first = self.ids.new_full((len(prompts),), _start_token(loaded))
        config = loaded.model.config
        self.cache = EncoderDecoderCache(_roomy_cache(config, room), DynamicCache(config=config))
        self.encoded: Any = None

    def start(self) -> Tensor:
        self.encoded = self.model.get_encoder()(input_ids=self.ids, attention_mask=self.mask)
        return self.step(self.first)

    def step(self, tokens: Tensor) -> Tensor:
        out = self.model(
            encoder_outputs=self.encoded,
            attention_mask=self.mask,
            decoder_input_ids=tokens[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return _last(out)

    def keep(self, rows: Tensor) -> None:
        self.mask = self.mask[rows]
        self.encoded.last_hidden_state = self.encoded.last_hidden_state[rows]
        self.cache.reorder_cache(rows)


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values in buffers with room for the whole answer: a step writes one token and copies no others."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.keys: Tensor
        self.values: Tensor
        self.room = room
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, heads, new, width) keys and values; all that are held so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        end = before + key_states.shape[-2]
        if self.buffers is None or end > self.buffers[0].shape[-2]:
            self.buffers = (
                self._buffer(key_states, self.keys, before, end),
                self._buffer(value_states, self.values, before, end),
            )
        keys, values = self.buffers
        keys[:, :, before:end] = key_states
        values[:, :, before:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.buffers = None  # keys and values are copies of their own now; the next update makes room again

    def _buffer(self, new: Tensor, old: Tensor, before: int, end: int) -> Tensor:
        batch, heads, _, width = new.shape
        buffer = new.new_empty(batch, heads, max(self.room, end), width)
        if before:
            buffer[:, :, :before] = old
        return buffer


def _roomy_cache(config: Any, room: int) -> DynamicCache:
    """The model's own kind of cache, with its plain layers (not sliding, not recurrent) made roomy."""
    held = DynamicCache(config=config)
    held.layers = [_RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in held.layers]
    return held


def _padded(rows: Sequence[Tokens], device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask (1 where a token is), both LongTensors (B, W)."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), _PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return ids.to(device), mask.to(device)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp_min(0)


def _memory_name(loaded: LoadedModel) -> str:
    """What the architecture calls its cache; an unknown one would silently start anew with every token."""
    known = _parameters(type(loaded.model).forward)
    for name in ("past_key_values", "cache_params"):
        if name in known:
            return name
    raise ModelError(f"{type(loaded.model).__name__} takes no cache that we know of, so it cannot generate here.")


def _last(out: Any) -> Tensor:
    logits: Tensor = out.logits[:, -1]
    return logits


def _start_token(loaded: LoadedModel) -> int:
    configured = loaded.model.generation_config.decoder_start_token_id
    return int(configured if configured is not None else loaded.model.config.decoder_start_token_id)


def _accepted(model: Any, **arguments: Any) -> dict[str, Any]:
    """The arguments that this architecture's forward knows (BLOOM has no positions, others always give all logits)."""
    known = _parameters(type(model).forward)
    return {name: value for name, value in arguments.items() if name in known}


@cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def _until(tokens: list[int], eos: Sequence[int]) -> list[int]:
    ends = (i for i, token in enumerate(tokens) if token in eos)
    return tokens[: next(ends, len(tokens) - 1) + 1]
