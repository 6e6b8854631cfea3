"""Passes of a model whose weights are divided over ranks: no rank can make one unless all ranks take part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import torch

from harness.errors import RankFailed, TrainingError
from harness.runtime.distributed import COLLECTIVE_TIMEOUT, ProcessGroup
from harness.runtime.signals import Interrupted


class Place(IntEnum):
    """What a rank is about to do when it meets the others.

    PASS: a pass without gradients. GRADIENTS: a pass with gradients. BACKWARD: the backward pass of the last one.
    END: nothing, until every rank is here. FAILED: it ends with an error.
    """

    PASS = 0
    GRADIENTS = 1
    BACKWARD = 2
    END = 3
    FAILED = 4


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """The error of a rank. signum: of the signal that has interrupted it; None for any other error."""

    message: str
    signum: int | None


class Lockstep:
    """Lets ranks make different numbers of passes without gradients, and as many with gradients as each other.

    Before each pass the ranks exchange where they are. While one of them makes a pass without gradients, as decoding
    does until its longest sequence ends, those that are elsewhere join it with an empty pass, which takes part in the
    exchange of weights and computes nothing. Everything else begins once all ranks are at it. So no rank waits for an
    exchange that another one never makes: ranks that do not fit together end with an error.

    Args:
        processes: the ranks, at least two.
        empty_pass: gathers and frees the weights of every block, in the order of a pass.
    """

    def __init__(self, processes: ProcessGroup, empty_pass: Callable[[], None]) -> None:
        self.processes, self._empty_pass = processes, empty_pass
        # Places are exchanged on the CPU, so that no host waits for its GPU at every pass.
        self._group = torch.distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        self._is_inside = False  # A pass has begun and has not ended.
        self._is_over = False  # Every rank has been informed of an error.

    def begin_pass(self) -> None:
        """Call it before each pass, in or without gradient mode. Raises: as ``meet``."""
        self.meet(Place.GRADIENTS if torch.is_grad_enabled() else Place.PASS)
        self._is_inside = True

    def begin_backward(self) -> None:
        """Call it before the backward pass of a step. Raises: as ``meet``."""
        self.meet(Place.BACKWARD)

    def end_pass(self) -> None:
        """Call it after each pass, but not after one that has raised an error."""
        self._is_inside = False

    def meet(self, place: Place) -> None:
        """Return once this rank may do what it is about to do; until then it joins in the passes of the others.

        Raises: RankFailed or Interrupted if another rank has ended; TrainingError on every rank if ranks are about to
            do different things with gradients.
        """
        while True:
            places = self._exchange(place)
            if Place.FAILED in places:
                self._raise(self._exchange_failures(None))
            if place is Place.PASS or Place.PASS not in places:
                break
            self._empty_pass()
        if place is not Place.PASS and len(set(places)) > 1:
            self._is_over = True
            raise TrainingError(
                "the ranks make different numbers of passes with gradients in one step, which a sharded base model "
                "does not allow: set train.shard_base=false, or change the setting of the method that reads prompts "
                "with gradients"
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around work in which ranks make different numbers of passes without gradients; all of them leave together.

        If one of them raises an error, the others raise RankFailed (or Interrupted) at their next pass.
        """
        try:
            yield
        except BaseException as error:
            self._tell(error)
            raise
        self.meet(Place.END)

    def _tell(self, error: BaseException) -> None:
        """Tell the other ranks of an error, unless they know of it, or wait inside a pass for this rank.

        In the second case only the end of this process can free them: torchrun then ends them too.
        """
        if self._is_over or self._is_inside:
            return
        self._exchange(Place.FAILED)
        signum = error.exit_code - 128 if isinstance(error, Interrupted) else None
        self._exchange_failures(_Failure(message=str(error) or type(error).__name__, signum=signum))
        self._is_over = True

    def _exchange(self, place: Place) -> list[Place]:
        mine = torch.tensor([place.value])
        found = [torch.empty_like(mine) for _ in range(self.processes.world_size)]
        torch.distributed.all_gather(found, mine, group=self._group)
        return [Place(int(one)) for one in found]

    def _exchange_failures(self, failure: _Failure | None) -> list[_Failure | None]:
        found: list[_Failure | None] = [None] * self.processes.world_size
        torch.distributed.all_gather_object(found, failure, group=self._group)
        return found

    def _raise(self, failures: list[_Failure | None]) -> None:
        self._is_over = True
        rank, failure = next((rank, one) for rank, one in enumerate(failures) if one is not None)
        if failure.signum is not None:
            raise Interrupted(failure.signum)
        raise RankFailed(f"rank {rank} has failed: {failure.message}")
