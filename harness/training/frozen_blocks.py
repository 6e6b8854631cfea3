"""The blocks below the first adapted one: what they compute never changes, so it is computed once and kept on disk.

A block is one layer of the model's stack, such as ``model.layers.3``. The hidden states of a sequence depend only on
its own tokens, so the states that enter the first adapted block are the same in every step, every run and under every
method. With them a training step computes only the blocks from there on (``train.cache_frozen``). They equal those of a
plain step up to rounding, because a product over other sequences of the micro-batch may round in another order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from harness.data.encoding import Encoded
from harness.errors import TrainingError
from harness.linear_layers import linear_layers
from harness.models.loading import LoadedModel
from harness.store.files import write_atomic
from harness.training.batch import Batch, Weighted, batch_logits, cross_entropies

_NAME: Final = "hidden_states"

# Collates sequences into a micro-batch, in the order of their tokens.
Collate = Callable[[Sequence[Weighted]], Batch]


class _Reached(Exception):
    """The first adapted block has been reached; what lies above it is not computed."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


@dataclass(frozen=True, kw_only=True)
class FrozenBlocks:
    """The blocks below the first adapted one, and the folder of the hidden states that leave them.

    blocks: the frozen ones, from the bottom. next: the first adapted block.
    folder: has one file per sequence, named by a hash of its tokens. Several runs may use it at once.
    """

    model: nn.Module
    blocks: Sequence[nn.Module]
    next: nn.Module
    folder: Path
    dtype: torch.dtype

    def states(self, sequences: Sequence[Weighted], parts: Sequence[Sequence[int]], collate: Collate) -> list[Tensor]:
        """The hidden states of each sequence, (tokens, width); those that no file has are computed and written.

        Args:
            parts: the positions in ``sequences`` of each micro-batch of at most as many tokens as memory allows.
        """
        found = [self._read(w.sequence) for w in sequences]
        for part in parts:
            missing = [i for i in part if found[i] is None]
            if missing:
                computed = self._compute(collate([sequences[i] for i in missing]))
                sizes = [len(sequences[i].sequence) for i in missing]
                for i, states in zip(missing, torch.split(computed, sizes), strict=True):
                    found[i] = states
                    write_atomic(self._path(sequences[i].sequence), save({_NAME: states.contiguous()}))
        return [states for states in found if states is not None]

    @contextmanager
    def replay(self, batch: Batch, states: Sequence[Tensor]) -> Iterator[None]:
        """While the context is open, forwards of the batch skip the frozen blocks and take these states instead.

        It stays open until backward has ended, because checkpointed blocks repeat their forward there.
        """
        mask = batch.masks[0]
        device = batch.labels.device
        values = torch.cat(list(states)).to(device, non_blocking=True)
        entering = values.new_zeros((mask.numel(), values.shape[1]))
        entering[mask.flatten().nonzero().squeeze(1).to(device, non_blocking=True)] = values
        entering = entering.view(*mask.shape, -1)
        with _forwards(self.blocks, lambda *_: entering):
            yield

    def check(self, batch: Batch, states: Sequence[Tensor], tolerance: float) -> None:
        """Compare the losses of a batch with and without the frozen blocks. Call it within the adapter's route.

        Args:
            tolerance: the largest mean difference of a token's loss.

        Raises: TrainingError if they differ, as in a model whose upper blocks use more of the lower ones than what
            leaves the last of them.
        """
        with torch.no_grad():
            whole = cross_entropies(batch_logits(self.model, batch), batch)
            with self.replay(batch, states):
                upper = cross_entropies(batch_logits(self.model, batch), batch)
        difference = float((whole - upper).abs().mean())
        if not difference <= tolerance:
            raise TrainingError(
                f"train.cache_frozen=true does not work with this model: a token's loss differs by {difference:.2g} "
                f"without the first {len(self.blocks)} blocks. Leave it out"
            )

    def _compute(self, batch: Batch) -> Tensor:
        """The hidden states of the batch's tokens, (tokens, width), without filling and padding."""

        def stop(states: Tensor, *_: Any) -> Tensor:
            raise _Reached(states)

        try:
            with torch.no_grad(), _forwards([self.next], stop):
                batch_logits(self.model, batch)
        except _Reached as reached:
            return reached.states.detach()[batch.masks[0].to(reached.states.device)].cpu()
        raise TrainingError(
            "train.cache_frozen=true does not work with this model: its forward does not call its blocks. Leave it out"
        )

    def _path(self, sequence: Encoded) -> Path:
        tokens = np.asarray([*sequence.prompt, *sequence.target], dtype="<i8").tobytes()
        return self.folder / f"{hashlib.sha256(tokens).hexdigest()[:32]}.safetensors"

    def _read(self, sequence: Encoded) -> Tensor | None:
        """The states on disk; None if there are none that fit."""
        try:
            states = load(self._path(sequence).read_bytes()).get(_NAME)
        except (FileNotFoundError, SafetensorError):  # A damaged file is computed again and overwritten.
            return None
        fits = states is not None and states.dtype == self.dtype and len(states) == len(sequence)
        return states if fits else None


def frozen_blocks(loaded: LoadedModel, folder: Path) -> FrozenBlocks:
    """The blocks below the first one that an attached adapter changes.

    Args:
        folder: of the base model, in whatever precision and from whatever block on.

    Raises: TrainingError if there are no such blocks, or if what they compute is not the same in every step.
    """
    if loaded.encoder_decoder:
        raise _refused("the model is an encoder-decoder")
    stack, first = _adapted_stack(loaded.model)
    if first == 0:
        raise _refused(
            "the adapter changes the first block, so that nothing below it is frozen. Adapt upper blocks only, with "
            "method.targets=model.layers.2*.* or the like"
        )
    if dropout := _dropout(loaded.model):
        raise _refused(f"the base model has {dropout}, so that its blocks compute something else in every step")
    kind = f"{str(loaded.dtype).removeprefix('torch.')}-{first}"
    blocks = list(stack)
    return FrozenBlocks(
        model=loaded.model, blocks=blocks[:first], next=blocks[first], folder=folder / kind, dtype=loaded.dtype
    )


def _adapted_stack(model: nn.Module) -> tuple[nn.ModuleList, int]:
    """The model's stack of blocks, and the position of the first block that an adapter changes."""
    first: dict[str, int] = {}
    for name, layer in linear_layers(model).layers.items():
        if model.get_submodule(name) is layer:
            continue
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if at is None:
            raise _refused(f"the adapter changes {name}, which is in none of the model's blocks")
        stack = ".".join(parts[:at])
        first[stack] = min(int(parts[at]), first.get(stack, int(parts[at])))
    if len(first) != 1:
        raise _refused(f"the adapter changes layers of {len(first)} stacks of blocks ({', '.join(sorted(first))})")
    [(name, position)] = first.items()
    blocks = model.get_submodule(name)
    if not isinstance(blocks, nn.ModuleList):
        raise _refused(f"{name} is not a list of blocks")
    return blocks, position


def _dropout(model: Any) -> str | None:
    """A kind of dropout that the base model has in training mode, with its probability."""
    settings = model.config.get_text_config().to_dict()
    for name, value in settings.items():
        named = "drop" in name and not name.startswith(("classifier", "summary"))  # Heads of other uses take no part.
        if named and isinstance(value, float | int) and value > 0:
            return f"{name}={value}"
    return None


def _refused(reason: str) -> TrainingError:
    return TrainingError(f"train.cache_frozen=true: {reason}")


@contextmanager
def _forwards(blocks: Sequence[nn.Module], instead: Callable[..., Tensor]) -> Iterator[None]:
    """The blocks with another forward, which gets the hidden states and whatever else a block gets."""

    def forward(*arguments: Any, **more: Any) -> Tensor:
        return instead(*(arguments or (more["hidden_states"],)))

    try:
        for block in blocks:
            block.forward = forward
        yield
    finally:
        for block in blocks:
            del block.forward
