"""Caches of keys and values of the sequences that are being decoded.

Shapes: S slots (sequences that share a forward pass), B prompts that are read together, V the size of the vocabulary.
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
from harness.masks import mask_kind, whole_mask
from harness.models.loading import LoadedModel, decoder_start_token
from harness.transfer import to_device

Tokens = Sequence[int]

_PAD = 0
"""The token id at padded positions; attention masks hide it."""

_ROPES_BY_LENGTH = {"longrope", "dynamic"}
"""Rotary embeddings that depend on the longest sequence of a forward pass."""


class SequenceCache(Protocol):
    """Sequences that a model is reading, in numbered slots.

    is_static: ``step`` runs the same operations on the same tensors every time, so that a graph can record them.
    """

    is_static: bool

    def prefill(self, slots: Tensor, prompts: Sequence[Tokens]) -> Tensor:
        """Read B prompts into these slots, which must be free; the logits after each prompt, (B, V)."""

    def begin_step(self) -> None:
        """The host's part of a step; call it before ``step``."""

    def step(self, tokens: Tensor, active: Tensor) -> Tensor:
        """Read one more token (S,) in each slot; the next logits, (S, V). active: (S,), False where none are needed."""

    def select(self, slots: Tensor) -> None:
        """Keep these slots and drop the others."""


def supports_refill(loaded: LoadedModel) -> bool:
    """Whether a sequence may take over the slot of one that has finished.

    That needs a plain cache, explicit positions, and layers that read nothing but a sequence's own positions: GPT-Neo's
    local layers count columns of the batch, and some rotary embeddings depend on the longest sequence in it.
    """
    if loaded.encoder_decoder or cache_argument(loaded) != "past_key_values":
        return False
    config = loaded.model.config.get_text_config(decoder=True)
    if "local" in (getattr(config, "attention_layers", None) or ()) or _ROPES_BY_LENGTH & _rope_types(config):
        return False
    layers = DynamicCache(config=loaded.model.config).layers
    plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    return plain and "position_ids" in _parameters(type(loaded.model).forward)


def _rope_types(config: Any) -> set[str]:
    """The types of rotary embeddings in a configuration, for the whole model or for each type of layer."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return {str(part.get("rope_type")) for part in (rope, *rope.values()) if isinstance(part, dict)}


def new_cache(loaded: LoadedModel, n_slots: int, longest: int, room: int) -> SequenceCache:
    """A cache with ``n_slots`` slots for prompts of up to ``longest`` tokens and ``room`` new ones."""
    if loaded.encoder_decoder:
        return _EncoderDecoderCache(loaded, room)
    return SlotCache(loaded, n_slots, longest + room) if supports_refill(loaded) else _LeftPaddedCache(loaded, room)


class _WritePosition:
    """The shared write position of the current step.

    It is an object apart from ``SlotCache``, because the layers hold it and the cache holds the layers: a reference
    cycle would keep a batch's memory until the garbage collector runs.

    slot: (S,) int64: 0, 1, ... column: (S,) int64, the column of each slot's new token.
    n_visible: attention covers the columns before this one.
    """

    def __init__(self, n_slots: int, device: torch.device) -> None:
        self.slot = torch.arange(n_slots, device=device)
        self.column = torch.zeros(n_slots, dtype=torch.long, device=device)
        self.n_visible = 0


class SlotCache:
    """Each sequence starts at column 0 of its slot, so that one can begin where another has finished.

    Where weights are float32 or better, attention covers the columns in use. In lower precision it always covers all:
    then the shape of every forward pass depends only on the plan, and no prediction on when others finish.
    """

    def __init__(self, loaded: LoadedModel, n_slots: int, width: int) -> None:
        self.loaded, self.model, self.width = loaded, loaded.model, width
        self.covers_used_only = loaded.dtype.itemsize >= 4
        self.is_static = not self.covers_used_only
        self.mask = torch.zeros(n_slots, width, dtype=torch.bool, device=loaded.device)
        self.lengths = torch.zeros(n_slots, dtype=torch.long, device=loaded.device)
        # Upper bounds of the lengths on the host, so that no step waits for the device.
        self.length_bounds = [0] * n_slots
        self.position = _WritePosition(n_slots, loaded.device)
        self.layers: list[_SlotLayer] = []
        self.cache = DynamicCache(config=loaded.model.config)
        self.mask_kind = mask_kind(loaded.model)

    def prefill(self, slots: Tensor, prompts: Sequence[Tokens]) -> Tensor:
        prompt_cache = _LeftPaddedCache(self.loaded, 0)
        logits = prompt_cache.prefill(torch.arange(len(prompts)), prompts)
        if not self.layers:
            shape = (len(self.length_bounds), self.width)
            self.layers = [_SlotLayer(self.position, layer, *shape) for layer in prompt_cache.cache.layers]
            self.cache.layers = list(self.layers)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
            self.length_bounds[slot] = length
        # One row for each prompt: the slot, the length, and the column that each column of the slot is read from.
        longest = int(lengths.max())
        columns = (torch.arange(self.width) + longest - lengths[:, None]).clamp(max=longest - 1)
        placed = to_device(torch.cat([slots[:, None], lengths[:, None], columns], 1), self.lengths.device)
        slots, lengths, columns = placed[:, 0], placed[:, 1], placed[:, 2:]
        read = torch.arange(self.width, device=self.lengths.device) < lengths[:, None]
        self.lengths.index_copy_(0, slots, lengths)
        self.mask.index_copy_(0, slots, read)
        for layer, prompt_layer in zip(self.layers, prompt_cache.cache.layers, strict=True):
            layer.put(slots, columns, read, prompt_layer)
        return logits

    def begin_step(self) -> None:
        used = min(max(self.length_bounds) + 1, self.width)
        self.position.n_visible = used if self.covers_used_only else self.width
        self.length_bounds = [min(bound + 1, self.width) for bound in self.length_bounds]

    def step(self, tokens: Tensor, active: Tensor) -> Tensor:
        position = self.position
        # A finished sequence may already fill its slot; it then overwrites the last column.
        torch.clamp(self.lengths, max=self.width - 1, out=position.column)
        self.mask.scatter_(1, position.column[:, None], True)
        out = self.model(
            input_ids=tokens[:, None],
            attention_mask=self._attention_mask(),
            position_ids=position.column[:, None],
            past_key_values=self.cache,
            use_cache=True,
            **accepted(self.model, logits_to_keep=1),
        )
        self.lengths.add_(active)
        return last_logits(out)

    def _attention_mask(self) -> Tensor:
        visible = self.mask[:, : self.position.n_visible]
        if self.mask_kind == "positions":
            return visible.long()
        return whole_mask(visible[:, None, None], self.mask_kind, self.loaded.dtype)

    def select(self, slots: Tensor) -> None:
        on_device = to_device(slots, self.lengths.device)
        self.mask, self.lengths = self.mask[on_device], self.lengths[on_device]
        self.length_bounds = self.lengths.tolist()
        # The layers hold the position, so that its tensors are replaced in it.
        position = self.position
        position.slot, position.column = position.slot[: len(slots)], position.column[: len(slots)]
        for layer in self.layers:
            layer.select(on_device)


class _SlotLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (S, heads, width, head width), written in place."""

    def __init__(self, position: _WritePosition, like: Any, n_slots: int, width: int) -> None:
        super().__init__()
        self.position = position
        self.is_initialized = True
        self.dtype, self.device = like.keys.dtype, like.keys.device
        # Zeros, because masked values are still multiplied by 0, and 0 times NaN is NaN.
        self.keys: Tensor = _buffer(like.keys, n_slots, width).zero_()
        self.values: Tensor = _buffer(like.values, n_slots, width).zero_()

    def put(self, slots: Tensor, columns: Tensor, read: Tensor, prompt_layer: Any) -> None:
        """Copy B prompts that were read with padding on the left into their slots, from column 0 on.

        It starts the same number of kernels for any number of prompts.

        Args:
            slots: (B,). columns: (B, width), the column in ``prompt_layer`` that each column of a slot is copied from.
            read: (B, width), False for columns after the prompt. They are 0: the sequence before may have left NaN.
        """
        for own, new in ((self.keys, prompt_layer.keys), (self.values, prompt_layer.values)):
            index = columns[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
            own.index_copy_(0, slots, new.gather(2, index).masked_fill_(~read[:, None, :, None], 0))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (S, heads, 1, head width) to each slot's own column; returns the columns that attention covers."""
        position = self.position
        self.keys[position.slot, :, position.column] = key_states[:, :, 0]
        self.values[position.slot, :, position.column] = value_states[:, :, 0]
        return self.keys[:, :, : position.n_visible], self.values[:, :, : position.n_visible]

    def select(self, slots: Tensor) -> None:
        self.keys, self.values = self.keys[slots], self.values[slots]

    def get_seq_length(self) -> int:
        """The length before the current step's own token."""
        return self.position.n_visible - 1


class _LeftPaddedCache:
    """Prompts are padded on the left, so that all sequences write to the same column: they must begin together."""

    is_static = False

    def __init__(self, loaded: LoadedModel, room: int) -> None:
        self.loaded, self.model, self.room = loaded, loaded.model, room
        self.argument = cache_argument(loaded)

    def prefill(self, slots: Tensor, prompts: Sequence[Tokens]) -> Tensor:
        ids, mask = pad_tokens(prompts, self.loaded.device, left=True)
        self.has_padding = min(map(len, prompts)) < ids.shape[1]
        self.mask = torch.cat([mask, mask.new_ones(len(prompts), self.room)], 1)
        self.positions = positions(self.mask)
        self.cache = _preallocated_cache(self.model.config, self.mask.shape[1])
        self.n_read = 0
        return self._forward(ids)

    def begin_step(self) -> None:
        """The host has nothing to do."""

    def step(self, tokens: Tensor, active: Tensor) -> Tensor:
        return self._forward(tokens[:, None])

    def select(self, slots: Tensor) -> None:
        slots = to_device(slots, self.mask.device)
        self.mask, self.positions = self.mask[slots], self.positions[slots]
        self.cache.reorder_cache(slots)

    def _forward(self, ids: Tensor) -> Tensor:
        before, self.n_read = self.n_read, self.n_read + ids.shape[1]
        mask = self.mask[:, : self.n_read] if self.has_padding else None
        if self.argument == "cache_params" and before:  # A recurrent model takes a mask of only the new tokens.
            mask = None
        extra = accepted(self.model, position_ids=self.positions[:, before : self.n_read], logits_to_keep=1)
        extra[self.argument] = self.cache
        return last_logits(self.model(input_ids=ids, attention_mask=mask, use_cache=True, **extra))


class _EncoderDecoderCache:
    """The encoder reads the prompts once, padded on the right; the decoder starts from its start token."""

    is_static = False

    def __init__(self, loaded: LoadedModel, room: int) -> None:
        self.loaded, self.model = loaded, loaded.model
        config = loaded.model.config
        self.cache = EncoderDecoderCache(_preallocated_cache(config, room), DynamicCache(config=config))
        self.encoded: Any = None

    def prefill(self, slots: Tensor, prompts: Sequence[Tokens]) -> Tensor:
        ids, self.mask = pad_tokens(prompts, self.loaded.device, left=False)
        self.encoded = self.model.get_encoder()(input_ids=ids, attention_mask=self.mask)
        first = ids.new_full((len(prompts),), decoder_start_token(self.loaded))
        return self.step(first, first.bool())

    def begin_step(self) -> None:
        """The host has nothing to do."""

    def step(self, tokens: Tensor, active: Tensor) -> Tensor:
        out = self.model(
            encoder_outputs=self.encoded,
            attention_mask=self.mask,
            decoder_input_ids=tokens[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return last_logits(out)

    def select(self, slots: Tensor) -> None:
        slots = to_device(slots, self.mask.device)
        self.mask = self.mask[slots]
        self.encoded.last_hidden_state = self.encoded.last_hidden_state[slots]
        self.cache.reorder_cache(slots)


class _PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values in buffers with room for all new tokens: a step writes one token and copies no others."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.keys: Tensor
        self.values: Tensor
        self.room = room
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, heads, new, width); returns all that are stored."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        end = before + key_states.shape[-2]
        if self.buffers is None or end > self.buffers[0].shape[-2]:
            self.buffers = (
                self._grown(key_states, self.keys, before, end),
                self._grown(value_states, self.values, before, end),
            )
        keys, values = self.buffers
        keys[:, :, before:end] = key_states
        values[:, :, before:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        # Keys and values are copies now and no longer views of the buffers; the next update allocates new ones.
        self.buffers = None

    def _grown(self, new: Tensor, old: Tensor, before: int, end: int) -> Tensor:
        buffer = _buffer(new, new.shape[0], max(self.room, end))
        if before:
            buffer[:, :, :before] = old
        return buffer


def _buffer(like: Tensor, n: int, width: int) -> Tensor:
    """An uninitialised buffer (n, heads, width, head width) for tensors (any, heads, any, head width)."""
    return like.new_empty(n, like.shape[1], width, like.shape[3])


def _preallocated_cache(config: Any, room: int) -> DynamicCache:
    """The model's own type of cache, with buffers for its plain layers (not the sliding or recurrent ones)."""
    found = DynamicCache(config=config)
    found.layers = [_PreallocatedLayer(room) if type(layer) is DynamicLayer else layer for layer in found.layers]
    return found


def pad_tokens(sequences: Sequence[Tokens], device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and mask (1 at tokens, 0 at padding), both LongTensors (sequences, longest)."""
    width = max(map(len, sequences))
    ids, mask = torch.full((len(sequences), width), _PAD), torch.zeros(len(sequences), width, dtype=torch.long)
    for i, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[i, place] = torch.tensor(sequence, dtype=torch.long)
        mask[i, place] = 1
    return to_device(ids, device), to_device(mask, device)


def positions(mask: Tensor) -> Tensor:
    """The position of each token in its own sequence, not counting padding; 0 at padding before it."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def cache_argument(loaded: LoadedModel) -> str:
    """The name of the forward's cache argument. An unknown one would restart the model's memory at every token."""
    known = _parameters(type(loaded.model).forward)
    for name in ("past_key_values", "cache_params"):
        if name in known:
            return name
    raise ModelError(
        f"{type(loaded.model).__name__} cannot generate here: its forward takes neither past_key_values nor "
        "cache_params. Choose another model, or one of the back ends that `harness list` shows"
    )


def last_logits(out: Any) -> Tensor:
    """The logits (B, V) after the last token read."""
    logits: Tensor = out.logits[:, -1]
    return logits


def accepted(model: Any, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that this model's forward takes; BLOOM for example takes no positions."""
    known = _parameters(type(model).forward)
    return {name: value for name, value in arguments.items() if name in known}


@cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
