"""Compiled blocks: each block of a model runs as one graph in the passes of training (``train.compile``).

PyTorch keeps graphs by the code that they were made of. The blocks of a model have the same code, and the weights are
inputs of a graph, so that one graph serves all blocks: the time to compile does not grow with the depth of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from harness.errors import TrainingError
from harness.linear_layers import linear_layers

LOG: Final = logging.getLogger(__name__)

GRAPH_LIMIT: Final = 32
"""Graphs of one kind of block. A training has a few: with and without a gradient to the block's input, with a mask or
without one, with one sequence or several, with one task or several."""

T = TypeVar("T")


class CompiledBlocks:
    """The compiled forwards of a model's blocks, which are in use only while ``in_use`` is open.

    Prediction and other passes without gradients run as without compilation: their shapes are others in every call.

    Args:
        model: with its adapter, if it has one.
        checkpointed: backward computes the activations of a block again (``train.gradient_checkpointing``). The graph
            is inside the checkpoint, so transformers' own checkpoints, which would be inside the graph, stay off.
        backend: of ``torch.compile``. limit: graphs of one kind of block, after which nothing is compiled any more.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        checkpointed: bool = False,
        backend: str | Callable[..., Any] = "inductor",
        limit: int = GRAPH_LIMIT,
    ) -> None:
        self.checkpointed, self.limit = checkpointed, limit
        self.is_on = True
        self._compiled = {
            block: torch.compile(block.forward, dynamic=True, backend=backend) for block in blocks_of(model)
        }

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Run the blocks compiled, until backward has ended: checkpointed blocks repeat their forward there."""
        try:
            for block, compiled in self._compiled.items():
                forward = compiled if self.is_on else block.forward
                block.forward = partial(checkpoint, forward, use_reentrant=False) if self.checkpointed else forward
            with _recompile_limit(self.limit):
                yield
        finally:
            for block in self._compiled:
                vars(block).pop("forward", None)

    def attempt(self, work: Callable[[], T]) -> T:
        """``work()``, and once more without compilation if it needs more graphs than the limit.

        Raises: TrainingError if PyTorch cannot compile a block.
        """
        from torch._dynamo.exc import TorchDynamoException

        try:
            return work()
        except _over_the_limit():
            self.is_on = False
            LOG.warning(
                "train.compile=true: the model's blocks need more than %d different graphs, so training continues "
                "without compilation, with the same results up to rounding. TORCH_LOGS=recompiles says what differs "
                "between the graphs; leave out train.compile to save the time that was spent on them",
                self.limit,
            )
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:300]
            raise TrainingError(
                f"train.compile=true: PyTorch cannot compile the model's blocks ({type(error).__name__}: {reason}). "
                "Install a C++ compiler (g++ or clang++) if it has none, or leave out train.compile"
            ) from error
        return work()


def blocks_of(model: nn.Module) -> Sequence[nn.Module]:
    """The blocks of the model that have linear layers, such as ``model.layers.3``; the model itself if it has none."""
    names: dict[str, None] = {}
    for name in linear_layers(model).layers:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if at is not None:
            names[".".join(parts[: at + 1])] = None
    return [model.get_submodule(name) for name in names] or [model]


@contextmanager
def _recompile_limit(limit: int) -> Iterator[None]:
    """While open, PyTorch raises an exception at the limit. By default it runs what exceeds it without compilation."""
    from torch._dynamo import config

    # Versions before 2.7 have other names.
    kind = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    fails = "fail_on_recompile_limit_hit" if kind == "recompile_limit" else "fail_on_cache_limit_hit"
    with config.patch({kind: limit, fails: True}):
        yield


def _over_the_limit() -> type[Exception]:
    """The exception that PyTorch raises at the limit."""
    from torch._dynamo import exc

    name = "FailOnRecompileLimitHit" if hasattr(exc, "FailOnRecompileLimitHit") else "FailOnCacheLimitHit"
    found: type[Exception] = getattr(exc, name)
    return found
