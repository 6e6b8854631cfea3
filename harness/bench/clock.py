"""Seconds of one training step, and ratios of steps that were timed in turn."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

LAUNCH_BOUND = 1.5  # wall time over the GPU's own: from here on the GPU waits for its kernels to be launched
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median and where, 19 times of 20, it lies; None where there are too few rounds to say."""

    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Which time is taken.

    Of one thread on a CPU it is the process's own computing time, on which other programs weigh less; of several
    threads, whose waiting counts as computing too, and on a GPU, it is the wall's.
    """

    device: torch.device
    threads: int

    @property
    def kind(self) -> str:
        """ "cpu" (computing time) or "wall"."""
        return "cpu" if self.device.type == "cpu" and self.threads == 1 else "wall"

    def seconds(self, work: Callable[[], object]) -> float:
        """What ``work`` takes, with everything that it has started on a GPU."""
        now = time.process_time if self.kind == "cpu" else time.perf_counter
        self._wait()
        started = now()
        work()
        self._wait()
        return now() - started

    def kernel_seconds(self, work: Callable[[], object]) -> float | None:
        """What ``work`` takes on a GPU without the pauses between its kernels; None on a CPU."""
        if self.device.type != "cuda":
            return None
        from torch.profiler import ProfilerActivity, profile

        self._wait()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            work()
            self._wait()
        kernels = [e for e in seen.events() or [] if e.device_type.name == "CUDA" and not e.is_user_annotation]
        return sum(float(e.self_device_time_total) for e in kernels) / 1e6

    def peak_bytes(self, work: Callable[[], object]) -> int | None:
        """What ``work`` needs on a GPU beyond what is there before it; None on a CPU."""
        if self.device.type != "cuda":
            return None
        self._wait()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self._wait()
        return torch.cuda.max_memory_allocated(self.device) - before

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def undisturbed(clock: Clock) -> Iterator[None]:
    """As many threads as the clock says, and no collection of garbage in the middle of a step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(clock.threads)
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collects:
            gc.enable()


def paired(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """The median of the rounds' ratios, between order statistics that enclose the true one with 95 % (sign test)."""
    ratios = sorted(n / d for n, d in zip(numerators, denominators, strict=True))
    n = len(ratios)
    below, k = 1 / 2**n, 0  # the chance that at most k of n rounds lie below the true median
    while 2 * below <= 1 - _CONFIDENCE:
        k += 1
        below += math.comb(n, k) / 2**n
    # k is the first count that is likely enough to happen: fewer than k below has a chance of at most 2.5 %.
    low, high = (ratios[k - 1], ratios[n - k]) if k else (None, None)
    return Interval(median=statistics.median(ratios), low=low, high=high)
