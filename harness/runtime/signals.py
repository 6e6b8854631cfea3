"""Ctrl-C and SIGTERM: finish the current step or batch, save the state, then stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from harness.errors import HarnessError


class Interrupted(HarnessError):
    """The run has received a signal to stop and has saved its state. Exit status 130 (Ctrl-C) or 143 (SIGTERM)."""

    printed_by_main_only = True  # under torchrun every rank raises it, and rank 0 prints it

    def __init__(self, signum: int) -> None:
        super().__init__("stopped; everything finished is saved. Run the same command again to resume.")
        self.exit_code = 128 + signum


class StopFlag:
    """Set by the first signal; ``check`` raises once the caller has saved its state."""

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
    """Turn the first SIGINT or SIGTERM into a flag; a second one has its usual effect at once."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # Python delivers signals to the main thread only
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    def set_flag(signum: int, frame: FrameType | None) -> None:
        flag.signum = signum
        restore()

    for each in before:
        signal.signal(each, set_flag)
    try:
        yield flag
    finally:
        restore()
