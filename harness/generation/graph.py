"""Recorded decoding steps: where the device has graphs, a step of hundreds of kernels is launched as one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import torch

LOG: Final = logging.getLogger(__name__)

Work = Callable[[], None]
Record = Callable[[Work], Work]
"""Records what the work launches, without executing it; returns a function that executes the recording."""


def recorder(device: torch.device) -> Record | None:
    """What records work on a device; None if the device has no graphs."""
    return _record_cuda if device.type == "cuda" else None


def _record_cuda(work: Work) -> Work:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Work = graph.replay
    return replay


class RecordedStep:
    """A step that is executed the first time, recorded the second time, and replayed from then on.

    The first execution allocates what libraries keep, which must not happen in a recording. The work only writes to
    tensors that exist before it, and does nothing on the host that a replay would leave out.
    """

    def __init__(self, work: Work, record: Record) -> None:
        self._work, self._record = work, record
        self._n_steps = 0
        self._replay: Work | None = None

    def __call__(self) -> None:
        self._n_steps += 1
        if self._n_steps == 2:
            self._replay = self._recorded()
        (self._replay or self._work)()

    def _recorded(self) -> Work | None:
        try:
            return self._record(self._work)
        except torch.OutOfMemoryError:
            raise
        # PyTorch raises RuntimeError, or a class of it, for any operation that cannot be recorded.
        except RuntimeError as error:
            LOG.warning("decoding runs without a graph, which is slower: %s", " ".join(str(error).split())[:200])
            return None
