"""Prepare the next training step's batch in a thread while the current step is computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Yield ``make(start)``, ``make(start + 1)``, ... up to ``make(stop - 1)``, in this order.

    Each item is prepared in a thread while the caller uses the previous one.

    waited_seconds: how long the last ``get`` waited for its item. clock: the time in seconds; tests pass their own.
    """

    def __init__(
        self, make: Callable[[int], T], start: int, stop: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.make, self.next_index, self.stop, self.clock = make, start, stop, clock
        self.waited_seconds = 0.0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._pending: Future[T] | None = None
        self._submit()

    def get(self) -> T:
        """Return the next item. Raises: whatever ``make`` raised for it."""
        assert self._pending is not None
        started = self.clock()
        item = self._pending.result()
        self.waited_seconds = self.clock() - started
        self._submit()
        return item

    def wait_until_idle(self) -> None:
        """Wait until the thread is idle, because a tokenizer must not be used by two threads at once."""
        if self._pending is not None:
            self._pending.exception()

    def _submit(self) -> None:
        self._pending = self._pool.submit(self.make, self.next_index) if self.next_index < self.stop else None
        self.next_index += 1

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
