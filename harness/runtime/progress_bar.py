"""Training progress on stderr: a bar on a terminal, an occasional line in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

# In a log a line is written after this many seconds, or when another tenth of the steps is done.
_SECONDS_PER_LINE, _LINES_PER_STAGE = 30.0, 10


class ProgressBar:
    """Progress of one training stage.

    Args:
        title: printed before the numbers, such as "train all".
        total: number of steps of the stage.
        done: number of steps that were done before this process started (a resumed run).
        quiet: print nothing, as every rank but rank 0 does.
        stream: where to print; default stderr.
        clock: returns seconds; tests pass a clock of their own.
    """

    def __init__(
        self,
        title: str,
        total: int,
        done: int,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total, self.done, self.resumed_at = title, total, done, done
        self.stream, self.clock = stream or sys.stderr, clock
        self.started = self.last_line = self.clock()
        self.prints_lines = not quiet and not self.stream.isatty()
        self.bar: tqdm[Any] = tqdm(
            total=total, initial=done, desc=title, unit="step", file=self.stream, disable=quiet or self.prints_lines
        )

    def update(self, loss: float, lr: float, tokens_per_second: float) -> None:
        """Count one more step, with the values to print next to it."""
        tenths_before = self.done * _LINES_PER_STAGE // self.total
        self.done += 1
        self.bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}", tok_s=f"{tokens_per_second:.0f}", refresh=False)
        self.bar.update()
        now = self.clock()
        next_tenth = self.done * _LINES_PER_STAGE // self.total > tenths_before
        if self.prints_lines and (next_tenth or now - self.last_line >= _SECONDS_PER_LINE):
            self.last_line = now
            left = (now - self.started) / (self.done - self.resumed_at) * (self.total - self.done)
            self.stream.write(
                f"{self.title}: step {self.done}/{self.total} ({100 * self.done // self.total} %), loss {loss:.3f}, "
                f"lr {lr:.1e}, {tokens_per_second:.0f} tokens/s, {timedelta(seconds=round(left))} left\n"
            )
            self.stream.flush()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()
