"""The processes that train one run together, as torchrun starts them: rank, world size, and what they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from harness.errors import RankFailed, UsageError

T = TypeVar("T")
_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets them beside WORLD_SIZE
# Ranks wait in a collective call for one that generates or saves for longer; torch's own limit is 10 to 30 minutes.
COLLECTIVE_TIMEOUT: Final = timedelta(hours=6)


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """This process's place in its group. Every rank trains and generates; rank 0 scores, writes records and prints."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True for rank 0."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place, and return it."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank; the value that the other ranks pass is ignored."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value if self.is_main else None]
        torch.distributed.broadcast_object_list(box, src=0, device=_object_device())
        received: T = box[0]
        return received

    def gather(self, value: T) -> list[T]:
        """The value of each rank, in the order of ranks, on every rank.

        Raises: RankFailed if another rank has ended.
        """
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        try:
            torch.distributed.all_gather_object(found, value)
        except RuntimeError as error:  # Back ends report a lost connection as this class or one below it.
            raise RankFailed(f"another rank has ended, as its own message says ({_first_line(error)})") from error
        return found

    def share_of(self, items: Sequence[T]) -> list[T]:
        """Every ``world_size``-th of some items that are the same on every rank: each item belongs to one rank."""
        return list(items[self.rank :: self.world_size])

    def wait(self) -> None:
        """Return once every rank has called this."""
        self.gather(None)

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all ranks; a gradient stays None if it is None on every rank.

        An adapter is small, so one flat exchange after the last micro-batch is cheap. Unlike DistributedDataParallel it
        needs no hooks for parameters that a rank did not use, that are outside the model, or whose step was repeated.
        """
        if self.world_size == 1:
            return
        everything = list(parameters)
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in everything) else torch.float32
        used = torch.tensor([p.grad is not None for p in everything], dtype=dtype, device=everything[0].device)
        flat = [
            p.new_zeros(p.numel(), dtype=dtype) if p.grad is None else p.grad.flatten().to(dtype) for p in everything
        ]
        total = self.all_reduce(torch.cat([used, *flat]))
        present = total[: len(everything)].tolist()
        parts = torch.split(total[len(everything) :], [p.numel() for p in everything])
        for parameter, part, n in zip(everything, parts, present, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if n else None

    def leave(self) -> None:
        """Destroy the process group, so that no rank keeps waiting for another one."""
        if self.world_size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


SINGLE_PROCESS = ProcessGroup()


def join() -> ProcessGroup:
    """Join the process group of torchrun and select this rank's GPU; ``SINGLE_PROCESS`` without torchrun.

    Raises: UsageError if only a part of torchrun's variables is set, as a job or a shell may leave it behind.
    """
    stated = os.environ.get("WORLD_SIZE", "1")
    if stated == "1":
        return SINGLE_PROCESS
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing or not stated.isdecimal():
        raise UsageError(
            f"the environment has WORLD_SIZE={stated}"
            + (f", but not {', '.join(missing)}" if missing else ", which is not a number of processes")
            + ". For one process: unset WORLD_SIZE. For several: start them with torchrun, which sets all of them"
        )
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=COLLECTIVE_TIMEOUT)
    return ProcessGroup(rank=state.process_index, world_size=state.num_processes)


def require_ranks(processes: ProcessGroup, shards: bool) -> None:
    """Raises: UsageError if a base model is to be sharded (``train.shard_base``) and there is one process."""
    if shards and processes.world_size == 1:
        raise UsageError(
            "train.shard_base=true divides the base model over the processes of torchrun, and there is only this one: "
            "start with torchrun --nproc-per-node N --no-python harness run …, or leave it out"
        )


def partition_by_length(lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """Assign sequences to ranks so that each rank has about the same number of tokens.

    The longest sequence comes first, and each goes to the rank with the fewest tokens so far.
    Returns: for each rank the positions of its sequences.
    """
    parts: list[list[int]] = [[] for _ in range(world_size)]
    tokens = [0] * world_size
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = min(range(world_size), key=lambda r: (tokens[r], r))
        parts[rank].append(i)
        tokens[rank] += lengths[i]
    return parts


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _object_device() -> torch.device:
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
