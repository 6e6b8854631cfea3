"""Timing training steps, and comparing steps that were timed in interleaved rounds."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import quantile_test

LAUNCH_BOUND = 1.5
"""From this ratio of wall time to kernel time on, a GPU mostly waits for its kernels to be launched."""

_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median and its 95 % confidence interval; None if there are too few rounds for one."""

    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Measures work on a device.

    With one thread on a CPU it takes the process's CPU time, which other programs affect less. With several threads,
    whose waiting counts as CPU time too, and on a GPU it takes wall time.
    """

    device: torch.device
    threads: int

    @property
    def kind(self) -> str:
        """The time that is taken: "cpu" or "wall"."""
        return "cpu" if self.device.type == "cpu" and self.threads == 1 else "wall"

    def seconds(self, work: Callable[[], object]) -> float:
        """The seconds that ``work`` takes, including all that it has started on a GPU."""
        now = time.process_time if self.kind == "cpu" else time.perf_counter
        self._wait()
        started = now()
        work()
        self._wait()
        return now() - started

    def kernel_seconds(self, work: Callable[[], object]) -> float | None:
        """The seconds of ``work``'s kernels on a GPU, without the pauses between them; None on a CPU."""
        if self.device.type != "cuda":
            return None
        from torch.profiler import ProfilerActivity, profile

        self._wait()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            work()
            self._wait()
        kernels = [e for e in profiler.events() or [] if e.device_type.name == "CUDA" and not e.is_user_annotation]
        return sum(float(e.self_device_time_total) for e in kernels) / 1e6

    def peak_bytes(self, work: Callable[[], object]) -> int | None:
        """The memory that ``work`` needs on a GPU beyond what is allocated before it; None on a CPU."""
        if self.device.type != "cuda":
            return None
        self._wait()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self._wait()
        return torch.cuda.max_memory_allocated(self.device) - before

    def free_memory(self) -> None:
        """Return to the device what no tensor uses any more. Garbage is not collected while steps are timed."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def undisturbed(clock: Clock) -> Iterator[None]:
    """The clock's number of threads, and no garbage collection during a step."""
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
    """The median of the rounds' ratios, with the interval between order statistics that inverts the sign test."""
    ratios = np.divide(numerators, denominators)
    found = quantile_test(ratios, p=0.5).confidence_interval(_CONFIDENCE)
    low, high = (float(end) for end in (found.low, found.high))
    has_interval = bool(np.isfinite([low, high]).all())
    return Interval(
        median=float(np.median(ratios)), low=low if has_interval else None, high=high if has_interval else None
    )
