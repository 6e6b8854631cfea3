"""The processes that train together (torchrun): what they sum, and what the first one tells the others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
_PATIENCE = timedelta(hours=6)  # others wait while the first process evaluates or saves


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process's place among ``count``. Only the first (rank 0) writes, evaluates and speaks."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def tell(self, value: T) -> T:
        """The first process's value, in every process; what the others give is dropped."""
        if self.count == 1:
            return value
        box: list[Any] = [value if self.first else None]
        torch.distributed.broadcast_object_list(box, src=0, device=_object_device())
        told: T = box[0]
        return told

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients of all processes added up in one exchange; None where no process has one, as in a single process.

        An adapter is small, so one flat exchange after the last micro-batch costs little, and it needs no bookkeeping
        about parameters that a process did not use, lie outside of the model, or were used before a step was redone.
        """
        if self.count == 1:
            return
        everything = list(parameters)
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in everything) else torch.float32
        used = torch.tensor([p.grad is not None for p in everything], dtype=dtype, device=everything[0].device)
        flat = [
            p.new_zeros(p.numel(), dtype=dtype) if p.grad is None else p.grad.flatten().to(dtype) for p in everything
        ]
        total = self.total(torch.cat([used, *flat]))
        present = total[: len(everything)].tolist()
        parts = torch.split(total[len(everything) :], [p.numel() for p in everything])
        for parameter, part, n in zip(everything, parts, present, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if n else None

    def leave(self) -> None:
        """End the group, so that no process waits for another one any more."""
        if self.count > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


ALONE = Processes()


def rank() -> int:
    """This process's rank as torchrun tells it, before any group is made."""
    return int(os.environ.get("RANK", "0"))


def join() -> Processes:
    """Make the group that torchrun has started this process for; ALONE without torchrun. Sets the process's GPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    return Processes(rank=state.process_index, count=state.num_processes)


def deal(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Rows dealt to processes by length, longest first, each to the process with the fewest tokens: positions."""
    hands: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        hand = min(range(count), key=lambda h: (tokens[h], h))
        hands[hand].append(i)
        tokens[hand] += lengths[i]
    return hands


def _object_device() -> torch.device:
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
