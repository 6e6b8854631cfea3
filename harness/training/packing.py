"""Arranging sequences in micro-batches: packed where a trial shows that the model supports it, otherwise padded."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded
from harness.errors import TrainingError
from harness.method import Adapter
from harness.models.loading import LoadedModel, decoder_start_token
from harness.runtime.memory import is_out_of_memory
from harness.training.attention import TAKES_BOUNDARIES, attention, block_of, packing_kernels
from harness.training.batch import Batch, Weighted, batch_logits, encoder_decoder, packed, padded, token_losses

LOG: Final = logging.getLogger(__name__)

# Tokens of a micro-batch, by device. On a CPU the cost of attention is quadratic in the length of a packed sequence.
MICRO_TOKENS: Final = {"cuda": 4096, "cpu": 512}

# A sequence shorter than this share of the longest one of its padded micro-batch starts another micro-batch.
_LEAST_FILLED: Final = 0.8

# Kinds of layers (``config.layer_types``) that divide a sequence by absolute position, or carry a state along it.
_UNPACKABLE_LAYERS: Final = ("chunked_attention", "linear_attention", "conv")

# The largest allowed difference of a token's loss between a packed and a single sequence.
TOLERANCE: Final = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.05}

# The sequence of the trial: its number of tokens, and how many of them are the prompt. Two sequences for another kernel
# than the model's own are longer than the blocks of 128 tokens in which kernels work.
_TRIAL_TOKENS: Final = 20
_KERNEL_TRIAL_TOKENS: Final = 72
_TRIAL_PROMPT: Final = 4

# Errors of a base model that does not support packed sequences or an attention kernel. transformers raises ImportError
# for a kernel whose package is missing, ValueError for a kernel that the architecture does not have, and TypeError
# where a forward takes fewer arguments; a kernel raises NotImplementedError or RuntimeError for a device, a dtype or a
# size that it does not support.
_REFUSALS: Final = (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the sequences of a micro-batch are arranged.

    packed: in one sequence; otherwise padded.
    attention: the attention kernel while training, by its name in transformers; None for the model's own.
    multiple: packed sequences are filled up to a multiple of this many tokens.
    """

    packed: bool
    attention: str | None = None
    multiple: int = 1

    def split(self, lengths: Sequence[int], micro_tokens: int) -> list[list[int]]:
        """Divide sequences into micro-batches of at most ``micro_tokens`` tokens; a longer sequence has its own.

        Returns: for each micro-batch the positions of its sequences.
        """
        return bins(lengths, micro_tokens) if self.packed else groups(lengths, micro_tokens)

    def collate(self, sequences: Sequence[Weighted], loaded: LoadedModel) -> Batch:
        """The micro-batch of these sequences, on the model's device."""
        if loaded.encoder_decoder:
            batch = encoder_decoder(sequences, decoder_start_token(loaded))
        elif self.packed:
            batch = packed(sequences, self.multiple, boundaries=self.attention in TAKES_BOUNDARIES)
        else:
            batch = padded(sequences)
        return batch.placed(loaded.device)


def bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit decreasing bin packing: the positions in each bin of ``capacity``; a longer sequence has its own."""
    filled: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((b for b, left in enumerate(room) if lengths[i] <= left), None)
        if place is None:
            filled.append([i])
            room.append(capacity - lengths[i])
        else:
            filled[place].append(i)
            room[place] -= lengths[i]
    return filled


def groups(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Groups of sequences of similar length, of at most ``capacity`` tokens with padding; a longer one has its own."""
    made: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[made[-1][0]] if made else 0
        if made and (len(made[-1]) + 1) * longest <= capacity and lengths[i] >= _LEAST_FILLED * longest:
            made[-1].append(i)
        else:
            made.append([i])
    return made


def micro_tokens(config: TrainConfig, device: torch.device) -> int:
    """``train.micro_tokens``, or the default of the device."""
    return config.micro_tokens or MICRO_TOKENS.get(device.type, MICRO_TOKENS["cuda"])


def choose_layout(loaded: LoadedModel, adapter: Adapter, config: TrainConfig, reads: bool) -> Layout:
    """The first packed layout that gives the model the losses of single sequences; the padded one where none does.

    Sequences are padded if the base model does not support packing. An error that only occurs with the adapter is a bug
    of its method, and is raised.

    Args:
        reads: the adapter chooses routes by reading prompts (trait LABEL_FREE).

    Raises: TrainingError if the memory does not hold two short sequences.
    """
    if config.packing == "off":
        return Layout(packed=False)
    kernels = packing_kernels(loaded)
    reason = _known_unsupported(loaded, config)
    for kernel in kernels if reason is None else []:
        layout = Layout(packed=True, attention=kernel, multiple=block_of(kernel))
        try:
            reason = _try(loaded, adapter, layout, reads)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"out of memory with two sequences of {_trial_tokens(loaded, layout)} tokens on {loaded.device}: use a "
                "smaller model, train.precision=bf16, or a device with more memory"
            ) from error
        if reason is None:
            reason = _too_long(loaded, adapter, layout, config)
        if reason is None:
            return layout
    if not loaded.encoder_decoder:
        LOG.warning("examples are padded instead of packed: %s", reason)
    return Layout(packed=False)


def _known_unsupported(loaded: LoadedModel, config: TrainConfig) -> str | None:
    """Why packing is known to go wrong where the short sequences of the trial would not show it."""
    if loaded.encoder_decoder:
        return "the model is an encoder-decoder"
    if "position_ids" not in inspect.signature(loaded.model.forward).parameters:
        return "the model takes no position_ids"
    text = loaded.model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    if unpackable := sorted(kinds.intersection(_UNPACKABLE_LAYERS)):
        return f"the model has layers of the kind {', '.join(unpackable)}"
    window = getattr(text, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", True)
    if window and slides and window < config.max_length:
        return f"the model attends to a window of {window} tokens, fewer than train.max_length={config.max_length}"
    return None


def _trial_tokens(loaded: LoadedModel, layout: Layout) -> int:
    if layout.attention is None:
        return _TRIAL_TOKENS
    return min(_KERNEL_TRIAL_TOKENS, loaded.max_context or _KERNEL_TRIAL_TOKENS)


def _trial_sequence(loaded: LoadedModel, layout: Layout) -> Weighted:
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    drawn = torch.Generator().manual_seed(0)
    n_tokens = _trial_tokens(loaded, layout)
    ids = torch.randint(min(3, vocabulary - 1), vocabulary, (n_tokens,), generator=drawn).tolist()
    encoded = Encoded(task="", prompt=(*ids[:_TRIAL_PROMPT],), target=(*ids[_TRIAL_PROMPT:],), truncated=False)
    return Weighted(sequence=encoded, task=0, position=0, weight=1.0)


def _too_long(loaded: LoadedModel, adapter: Adapter, layout: Layout, config: TrainConfig) -> str | None:
    """Why packed sequences longer than the model's context cannot be used; None if they can, or are not needed.

    Positions restart in each sequence, so most models take them; GPT-Neo has a mask of a fixed size.
    """
    longest, context = micro_tokens(config, loaded.device), loaded.max_context
    if context is None or longest <= context:
        return None
    sequence = _trial_sequence(loaded, layout)
    try:
        refusal = _refusal(
            loaded, adapter, layout, layout.collate([sequence] * (longest // len(sequence.sequence)), loaded)
        )
    except RuntimeError as error:
        if is_out_of_memory(error):
            return None  # Training halves its micro-batches, so memory says nothing about the layout.
        raise
    if refusal is None:
        return None
    return f"with train.micro_tokens={longest}, more than the model's context of {context} tokens, {refusal}"


def _try(loaded: LoadedModel, adapter: Adapter, layout: Layout, reads: bool) -> str | None:
    """Compare two equal packed sequences with one alone: if the second attended to the first, it could copy from it.

    Returns: why the layout cannot be used; None if it can.
    """
    sequence = _trial_sequence(loaded, layout)
    single, pair = padded([sequence]).placed(loaded.device), layout.collate([sequence, sequence], loaded)
    name = layout.attention or "the model's own attention"
    refusal = _refusal(loaded, adapter, layout, pair)
    if refusal is not None:
        return f"with {name}, {refusal}"
    with torch.no_grad():
        alone = _losses(loaded, adapter, single, reads)
    together = _losses_with_backward(loaded, adapter, layout, pair, reads)
    difference = float((together.double() - alone.double().repeat(2)).abs().mean())
    if not difference <= TOLERANCE[loaded.dtype]:
        return f"with {name}, a token's loss differs by {difference:.2g} between packed and single sequences"
    return None


def _refusal(loaded: LoadedModel, adapter: Adapter, layout: Layout, batch: Batch) -> str | None:
    """Why the base model, without its adapter, does not compute the batch forward and backward; None if it does."""
    probed = _probed(loaded, adapter)
    try:
        if probed is not None:
            probed.requires_grad_(True)
        with torch.enable_grad(), attention(loaded.model, layout.attention), adapter.off():
            logits = batch_logits(loaded.model, batch)
            if probed is not None and logits.requires_grad:
                torch.autograd.grad(logits.sum(), probed)
    except _REFUSALS as error:
        if is_out_of_memory(error):
            raise  # It is a RuntimeError too, but does not depend on the layout.
        return f"the model raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        if probed is not None:
            probed.requires_grad_(False)
    if logits.shape[:2] != (1, len(batch.labels)):
        return "the model does not give the logits of chosen positions only"
    return None


def _probed(loaded: LoadedModel, adapter: Adapter) -> nn.Parameter | None:
    """A parameter of the base model whose gradient passes through the kernels of all blocks."""
    if loaded.sharding is not None:  # A pass uses other tensors than the parameters of the blocks.
        table: nn.Parameter = loaded.model.get_input_embeddings().weight
        return table
    trained = {id(p) for p in adapter.trainable().values()}
    # One small parameter of the first block is enough.
    return next((p for p in loaded.model.parameters() if p.dim() == 1 and id(p) not in trained), None)


def _losses(loaded: LoadedModel, adapter: Adapter, batch: Batch, reads: bool) -> Tensor:
    with adapter.route(batch.routes, batch.examples):
        return token_losses(loaded.model, adapter, batch, reads)


def _losses_with_backward(loaded: LoadedModel, adapter: Adapter, layout: Layout, batch: Batch, reads: bool) -> Tensor:
    """Losses of the batch after a backward pass, which must work too; leaves no gradient."""
    parameters = adapter.trainable().values()
    before = [p.requires_grad for p in parameters]
    try:
        for parameter in parameters:  # The current stage may train none of the parameters that the trial uses.
            parameter.requires_grad_(True)
        # A search calls this without gradients.
        with (
            torch.enable_grad(),
            attention(loaded.model, layout.attention),
            adapter.route(batch.routes, batch.examples),
        ):
            losses = token_losses(loaded.model, adapter, batch, reads)
            losses.sum().backward()  # type: ignore[no-untyped-call]
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.grad = None
            parameter.requires_grad_(required)
    return losses.detach()
