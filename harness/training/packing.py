"""How rows become micro-batches: packed where the model allows it, which is tried out, else padded by length."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded
from harness.method import Adapter
from harness.models.loading import LoadedModel, decoder_start_token
from harness.training.attention import _kernels, attention
from harness.training.batch import Batch, Weighted, encoder_decoder, packed, padded, token_losses

LOG: Final = logging.getLogger(__name__)

MICRO_TOKENS = {"cuda": 4096, "cpu": 512}  # on a CPU attention over a packed row costs its length squared


_BLOCK = 128  # tokens: flex attention works in blocks, and each new length may cost a compilation


_LEAST_FILLED = 0.8  # of a padded row: a shorter one starts another micro-batch


_OWN_CHUNKS = ("chunked_attention", "linear_attention", "conv")  # layers that cut sequences by absolute position


_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.05}  # of a token's loss


_CHECK_TOKENS = 20


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the rows of a micro-batch stand.

    attention: transformers' name of the kernel while training; None: the model's own.
    multiple: packed rows are filled up to a multiple of it.
    """

    packed: bool
    attention: str | None = None
    multiple: int = 1

    def split(self, lengths: Sequence[int], micro_tokens: int) -> list[list[int]]:
        """Positions of the rows of each micro-batch of at most ``micro_tokens`` tokens, or of one longer row."""
        return bins(lengths, micro_tokens) if self.packed else groups(lengths, micro_tokens)

    def collate(self, rows: Sequence[Weighted], loaded: LoadedModel) -> Batch:
        """A micro-batch of these rows."""
        if loaded.encoder_decoder:
            return encoder_decoder(rows, loaded.device, decoder_start_token(loaded))
        return packed(rows, loaded.device, self.multiple) if self.packed else padded(rows, loaded.device)


def bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First fit, longest first: the positions in each bin of ``capacity``; a longer row is alone."""
    found: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((b for b, left in enumerate(room) if lengths[i] <= left), None)
        if place is None:
            found.append([i])
            room.append(capacity - lengths[i])
        else:
            found[place].append(i)
            room[place] -= lengths[i]
    return found


def groups(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of similar length, longest first: at most ``capacity`` tokens with padding (or one row)."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[found[-1][0]] if found else 0
        if found and (len(found[-1]) + 1) * longest <= capacity and lengths[i] >= _LEAST_FILLED * longest:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def micro_tokens(config: TrainConfig, device: torch.device) -> int:
    """``train.micro_tokens``, or what suits the device."""
    return config.micro_tokens or MICRO_TOKENS.get(device.type, MICRO_TOKENS["cuda"])


def choose_layout(loaded: LoadedModel, adapter: Adapter, config: TrainConfig, reads: bool) -> Layout:
    """The first way of packing that gives this model the losses of single rows; padded where none does.

    Args:
        reads: the adapter reads prompts (trait LABEL_FREE).
    """
    if config.packing == "off":
        return Layout(packed=False)
    layouts = [Layout(packed=True, attention=a, multiple=_BLOCK if a else 1) for a in _kernels(loaded)]
    why = _unfit(loaded, config)
    for layout in layouts if why is None else []:
        why = _fault(loaded, adapter, layout, reads)
        if why is None:
            return layout
    if not loaded.encoder_decoder:
        LOG.warning("examples are padded instead of packed: %s", why)
    return Layout(packed=False)


def _unfit(loaded: LoadedModel, config: TrainConfig) -> str | None:
    """What is known to go wrong with packed rows that short rows do not show."""
    if loaded.encoder_decoder:
        return "the model is an encoder-decoder"
    if "position_ids" not in inspect.signature(loaded.model.forward).parameters:
        return "the model takes no position_ids"
    text = loaded.model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    if own := sorted(kinds.intersection(_OWN_CHUNKS)):
        return f"the model has layers of the kind {', '.join(own)}"
    window = getattr(text, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", True)
    if window and slides and window < config.max_length:
        return f"the model attends to a window of {window} tokens"
    return None


def _fault(loaded: LoadedModel, adapter: Adapter, layout: Layout, reads: bool) -> str | None:
    """Compare two equal short rows packed with one alone: a row that sees the other one could copy from it."""
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(min(3, vocabulary - 1), vocabulary, (_CHECK_TOKENS,), generator=drawn).tolist()
    row = Weighted(row=Encoded(task="", prompt=(*ids[:4],), target=(*ids[4:],), cut=False), task=0, weight=1.0)
    name = layout.attention or "the model's own attention"
    parameters = adapter.trainable().values()
    trained = [p.requires_grad for p in parameters]
    try:
        for parameter in parameters:  # a stage may train none of the parameters that this row uses
            parameter.requires_grad_(True)
        with torch.no_grad():
            alone = _losses(loaded, adapter, padded([row], loaded.device), reads)
        with torch.enable_grad(), attention(loaded.model, layout.attention):  # a search asks without gradients
            batch = layout.collate([row, row], loaded)
            with adapter.route(batch.routes):
                losses = token_losses(loaded.model, adapter, batch, reads)
                losses.sum().backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, TypeError, ImportError, NotImplementedError, AttributeError, IndexError) as error:
        return f"with {name} the model raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        for parameter, before in zip(parameters, trained, strict=True):
            parameter.grad = None
            parameter.requires_grad_(before)
    if losses.shape != (2 * len(alone),):
        return "the model gives no logits of chosen positions"
    apart = float((losses.detach().double() - alone.double().repeat(2)).abs().mean())
    if not apart <= _TOLERANCE[loaded.dtype]:
        return f"with {name} a token's loss differs by {apart:.2g} between packed and single rows"
    return None


def _losses(loaded: LoadedModel, adapter: Adapter, batch: Batch, reads: bool) -> Tensor:
    with adapter.route(batch.routes):
        return token_losses(loaded.model, adapter, batch, reads)
