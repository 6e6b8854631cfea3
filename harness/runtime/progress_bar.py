"""What people see while a stage is trained: a bar on a terminal, else a line now and then for logs."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

_SECONDS, _SHARES = 30.0, 10  # a line after so many seconds, or when another tenth of the steps is done


class Watch:
    """Progress of one stage on stderr.

    Args:
        done: steps that an earlier process has made. quiet: say nothing (a process that is not the first).
    """

    def __init__(self, title: str, total: int, done: int, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.title, self.total, self.done, self.first = title, total, done, done
        self.stream = stream or sys.stderr
        self.started = self.said = time.monotonic()
        self.lines = not quiet and not self.stream.isatty()
        self.bar: tqdm[Any] = tqdm(
            total=total, initial=done, desc=title, unit="step", file=self.stream, disable=quiet or self.lines
        )

    def update(self, loss: float, lr: float, speed: float) -> None:
        """One more step. speed: tokens a second."""
        tenth = self.done * _SHARES // self.total
        self.done += 1
        self.bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}", tok_s=f"{speed:.0f}", refresh=False)
        self.bar.update()
        now = time.monotonic()
        if self.lines and (self.done * _SHARES // self.total > tenth or now - self.said >= _SECONDS):
            self.said = now
            left = (now - self.started) / (self.done - self.first) * (self.total - self.done)
            self.stream.write(
                f"{self.title}: step {self.done}/{self.total} ({100 * self.done // self.total} %), loss {loss:.3f}, "
                f"lr {lr:.1e}, {speed:.0f} tokens/s, {timedelta(seconds=round(left))} left\n"
            )
            self.stream.flush()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()
