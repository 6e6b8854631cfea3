"""Ctrl-C and SIGTERM: finish the step or the row at hand, keep the state, then stop (a batch of texts is made anew)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from harness.errors import HarnessError


class Interrupted(HarnessError):
    """The run was asked to stop and has kept its state. Exit status 130 (Ctrl-C) or 143 (SIGTERM)."""

    said_by_first = True  # of several processes one says so

    def __init__(self, signum: int) -> None:
        super().__init__("stopped; everything finished is kept. Give the same command again to go on.")
        self.exit_code = 128 + signum


class StopFlag:
    """Set by the first signal; ``check`` raises once the caller has kept its state."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None

    def check(self) -> None:
        """Raises: Interrupted after a signal."""
        if self.signum is not None:
            raise Interrupted(self.signum)


@contextmanager
def stop_gracefully() -> Iterator[StopFlag]:
    """Catch the first SIGINT or SIGTERM as a flag; a second one acts at once, as it would have without us."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def remember(signum: int, frame: FrameType | None) -> None:
        flag.signum = signum
        for each, handler in before.items():
            signal.signal(each, handler)

    for each in before:
        signal.signal(each, remember)
    try:
        yield flag
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
