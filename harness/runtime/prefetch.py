"""The next step's rows are made in a thread while this step is computed, in exactly the plan's order."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """``make(first)``, ``make(first + 1)``, ..., each made while the caller works on the one before.

    waited: seconds that the caller has waited for the last one. clock: the time in seconds, for tests.
    """

    def __init__(
        self, make: Callable[[int], T], first: int, last: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.make, self.next, self.last, self.clock = make, first, last, clock
        self.waited = 0.0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rows")
        self._ahead: Future[T] | None = None
        self._submit()

    def take(self) -> T:
        """The next one. Raises: what ``make`` raised."""
        assert self._ahead is not None
        started = self.clock()
        made = self._ahead.result()
        self.waited = self.clock() - started
        self._submit()
        return made

    def rest(self) -> None:
        """Wait until nothing is being made: a tokenizer must not be used by two threads at once."""
        if self._ahead is not None:
            self._ahead.exception()

    def _submit(self) -> None:
        self._ahead = self._pool.submit(self.make, self.next) if self.next < self.last else None
        self.next += 1

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
