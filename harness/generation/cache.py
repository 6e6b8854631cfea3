"""What a model has read and written so far: a batch on its way, and the caches of keys and values.

Shapes: S slots (rows that share a forward), g rows that are read together, V the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from harness.errors import ModelError
from harness.models.loading import LoadedModel, decoder_start_token

Tokens = Sequence[int]
_PAD = 0  # never seen: padded places are masked
_ROPES_BY_LENGTH = {"longrope", "dynamic"}


class State(Protocol):
    """Rows on their way through a model, in numbered slots."""

    def admit(self, slots: Tensor, prompts: Sequence[Tokens]) -> Tensor:
        """Read g prompts into these (free) slots; the first logits (g, V)."""

    def step(self, tokens: Tensor, going: Tensor) -> Tensor:
        """Read one more token (S,) of each slot; the next logits (S, V). going (S,): False where no one wants them."""

    def keep(self, slots: Tensor) -> None:
        """Go on with these slots alone."""


def admits_later(loaded: LoadedModel) -> bool:
    """Whether rows may take over slots of rows that have ended.

    Plain caches alone, positions that we can say, and no layer that reads more than a row's own positions: GPT-Neo's
    local layers go by columns, and some rotary embeddings by the longest row of a forward.
    """
    if loaded.encoder_decoder or memory_name(loaded) != "past_key_values":
        return False
    config = loaded.model.config.get_text_config(decoder=True)
    if "local" in (getattr(config, "attention_layers", None) or ()) or _ROPES_BY_LENGTH & _rope_types(config):
        return False
    layers = DynamicCache(config=loaded.model.config).layers
    plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    return plain and "position_ids" in _parameters(type(loaded.model).forward)


def _rope_types(config: Any) -> set[str]:
    """The kinds of rotary embeddings that a configuration names, of the model or of its kinds of layers."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return {str(part.get("rope_type")) for part in (rope, *rope.values()) if isinstance(part, dict)}


def new_state(loaded: LoadedModel, n_slots: int, longest: int, room: int) -> State:
    """A state of ``n_slots`` slots for prompts of up to ``longest`` tokens and answers of up to ``room``."""
    if loaded.encoder_decoder:
        return _EncoderDecoder(loaded, room)
    return Slots(loaded, n_slots, longest + room) if admits_later(loaded) else _Causal(loaded, room)


class _Step:
    """Where the step that is under way writes and looks. Layers hold it and not the slots, which hold them."""

    rows: Tensor  # LongTensor (S,): 0, 1, ...
    at: Tensor  # LongTensor (S,): the column of each slot's new token
    seen: int = 0  # columns that attention looks at


class Slots:
    """Rows in slots of their own, each from column 0 on, so that a row may begin where another one has ended.

    Where weights are float32, attention looks at the columns in use. In lower precision it always looks at all of
    them: then the shapes of every forward follow from the plan alone, and no text depends on when others end.
    """

    def __init__(self, loaded: LoadedModel, n_slots: int, width: int) -> None:
        self.loaded, self.model, self.width = loaded, loaded.model, width
        self.narrow = loaded.dtype.itemsize >= 4
        self.mask = torch.zeros(n_slots, width, dtype=torch.long, device=loaded.device)
        self.lengths = torch.zeros(n_slots, dtype=torch.long, device=loaded.device)
        self.reach = [0] * n_slots  # at least each slot's length, known without waiting for the device
        self.now = _Step()
        self.layers: list[_SlotLayer] = []
        self.cache = DynamicCache(config=loaded.model.config)

    def admit(self, slots: Tensor, prompts: Sequence[Tokens]) -> Tensor:
        reading = _Causal(self.loaded, 0)
        logits = reading.admit(torch.arange(len(prompts)), prompts)
        if not self.layers:
            shape = (len(self.reach), self.width)
            self.layers = [_SlotLayer(self.now, layer, *shape) for layer in reading.cache.layers]
            self.cache.layers = list(self.layers)
        places, lengths = slots.tolist(), [len(p) for p in prompts]
        for mine, read in zip(self.layers, reading.cache.layers, strict=True):
            mine.put(places, lengths, read.keys, read.values)
        self.lengths[slots.to(self.lengths.device)] = torch.tensor(lengths, device=self.lengths.device)
        for place, length in zip(places, lengths, strict=True):
            self.mask[place, :length] = 1
            self.mask[place, length:] = 0
            self.reach[place] = length
        return logits

    def step(self, tokens: Tensor, going: Tensor) -> Tensor:
        now = self.now
        now.at = self.lengths.clamp_max(self.width - 1)  # an ended row may stand at the end: it writes there again
        now.rows = torch.arange(len(now.at), device=now.at.device)
        now.seen = min(max(self.reach) + 1, self.width) if self.narrow else self.width
        self.mask[now.rows, now.at] = 1
        out = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask[:, : now.seen],
            position_ids=now.at[:, None],
            past_key_values=self.cache,
            use_cache=True,
            **accepted(self.model, logits_to_keep=1),
        )
        self.lengths = self.lengths + going
        self.reach = [min(reach + 1, self.width) for reach in self.reach]
        return last(out)

    def keep(self, slots: Tensor) -> None:
        on_device = slots.to(self.lengths.device)
        self.mask, self.lengths = self.mask[on_device], self.lengths[on_device]
        self.reach = self.lengths.tolist()
        for layer in self.layers:
            layer.keep(on_device)


class _SlotLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values (S, heads, width, head width), written in place."""

    def __init__(self, now: _Step, like: Any, n_slots: int, width: int) -> None:
        super().__init__()
        self.now = now
        self.is_initialized = True
        self.dtype, self.device = like.keys.dtype, like.keys.device
        # zeros: what a mask hides is still multiplied, and 0 times nan is nan
        self.keys: Tensor = _roomy(like.keys, n_slots, width).zero_()
        self.values: Tensor = _roomy(like.values, n_slots, width).zero_()

    def put(self, slots: Sequence[int], lengths: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Prompts that were read with padding on the left, into their slots from column 0 on."""
        for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
            for mine, read in ((self.keys, keys), (self.values, values)):
                mine[slot, :, :length] = read[row, :, -length:]
                mine[slot, :, length:] = 0  # what the row before left there may be nan

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (S, heads, 1, head width), each slot's into its own column; all that this step's attention sees."""
        now = self.now
        self.keys[now.rows, :, now.at] = key_states[:, :, 0]
        self.values[now.rows, :, now.at] = value_states[:, :, 0]
        return self.keys[:, :, : now.seen], self.values[:, :, : now.seen]

    def keep(self, slots: Tensor) -> None:
        self.keys, self.values = self.keys[slots], self.values[slots]

    def get_seq_length(self) -> int:
        return self.now.seen - 1  # before the step's own token


class _Causal:
    """Prompts padded on the left, so that every row writes into the same place of the cache: all begin together."""

    def __init__(self, loaded: LoadedModel, room: int) -> None:
        self.loaded, self.model, self.room = loaded, loaded.model, room
        self.memory = memory_name(loaded)

    def admit(self, slots: Tensor, prompts: Sequence[Tokens]) -> Tensor:
        ids, mask = padded(prompts, self.loaded.device, left=True)
        self.padded = min(map(len, prompts)) < ids.shape[1]
        self.mask = torch.cat([mask, mask.new_ones(len(prompts), self.room)], 1)
        self.positions = positions(self.mask)
        self.cache = _roomy_cache(self.model.config, self.mask.shape[1])
        self.read = 0
        return self._forward(ids)

    def step(self, tokens: Tensor, going: Tensor) -> Tensor:
        return self._forward(tokens[:, None])

    def keep(self, slots: Tensor) -> None:
        slots = slots.to(self.mask.device)
        self.mask, self.positions = self.mask[slots], self.positions[slots]
        self.cache.reorder_cache(slots)

    def _forward(self, ids: Tensor) -> Tensor:
        before, self.read = self.read, self.read + ids.shape[1]
        places = self.positions[:, before : self.read]
        mask = self.mask[:, : self.read] if self.padded else None
        if self.memory == "cache_params" and before:  # a recurrent state: the mask is of the new tokens alone
            mask = None
        extra = accepted(self.model, position_ids=places, logits_to_keep=1)
        extra[self.memory] = self.cache
        return last(self.model(input_ids=ids, attention_mask=mask, use_cache=True, **extra))


class _EncoderDecoder:
    """The encoder reads the prompts once, padded on the right; the decoder starts from its start token."""

    def __init__(self, loaded: LoadedModel, room: int) -> None:
        self.loaded, self.model = loaded, loaded.model
        config = loaded.model.config
        self.cache = EncoderDecoderCache(_roomy_cache(config, room), DynamicCache(config=config))
        self.encoded: Any = None

    def admit(self, slots: Tensor, prompts: Sequence[Tokens]) -> Tensor:
        ids, self.mask = padded(prompts, self.loaded.device, left=False)
        self.encoded = self.model.get_encoder()(input_ids=ids, attention_mask=self.mask)
        first = ids.new_full((len(prompts),), decoder_start_token(self.loaded))
        return self.step(first, first.bool())

    def step(self, tokens: Tensor, going: Tensor) -> Tensor:
        out = self.model(
            encoder_outputs=self.encoded,
            attention_mask=self.mask,
            decoder_input_ids=tokens[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return last(out)

    def keep(self, slots: Tensor) -> None:
        slots = slots.to(self.mask.device)
        self.mask = self.mask[slots]
        self.encoded.last_hidden_state = self.encoded.last_hidden_state[slots]
        self.cache.reorder_cache(slots)


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
        buffer = _roomy(new, new.shape[0], max(self.room, end))
        if before:
            buffer[:, :, :before] = old
        return buffer


def _roomy(like: Tensor, n: int, width: int) -> Tensor:
    """A buffer (n, heads, width, head width) for tensors (any, heads, any, head width)."""
    return like.new_empty(n, like.shape[1], width, like.shape[3])


def _roomy_cache(config: Any, room: int) -> DynamicCache:
    """The model's own kind of cache, with its plain layers (not sliding, not recurrent) made roomy."""
    held = DynamicCache(config=config)
    held.layers = [_RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in held.layers]
    return held


def padded(rows: Sequence[Tokens], device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask (1 where a token is), both LongTensors (rows, longest)."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), _PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return ids.to(device), mask.to(device)


def positions(mask: Tensor) -> Tensor:
    """Of each token in its row, whatever stands before it; 0 where nothing is."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def memory_name(loaded: LoadedModel) -> str:
    """What the architecture calls its cache; an unknown one would silently start anew with every token."""
    known = _parameters(type(loaded.model).forward)
    for name in ("past_key_values", "cache_params"):
        if name in known:
            return name
    raise ModelError(f"{type(loaded.model).__name__} takes no cache that we know of, so it cannot generate here.")


def last(out: Any) -> Tensor:
    """The logits (rows, V) after the last token read."""
    logits: Tensor = out.logits[:, -1]
    return logits


def accepted(model: Any, **arguments: Any) -> dict[str, Any]:
    """The arguments that this architecture's forward knows (BLOOM has no positions, others always give all logits)."""
    known = _parameters(type(model).forward)
    return {name: value for name, value in arguments.items() if name in known}


@cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
