"""Training progress: a bar on a terminal, a few lines in a log."""

from __future__ import annotations

import io

from harness.runtime.progress_bar import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(
    stream: io.StringIO, total: int, done: int = 0, quiet: bool = False, seconds_per_step: float = 0
) -> list[str]:
    now = [0.0]

    def clock() -> float:
        now[0] += seconds_per_step
        return now[0]

    with ProgressBar("train all", total, done, quiet=quiet, stream=stream, clock=clock) as bar:
        for _ in range(total - done):
            bar.update(1.25, 1e-3, 1000.0)
    return stream.getvalue().splitlines()


def test_a_log_has_ten_lines_and_a_terminal_a_bar() -> None:
    lines = printed(io.StringIO(), 1000)
    assert len(lines) == 10
    assert lines[0].startswith("train all: step 100/1000 (10 %), loss 1.250, lr 1.0e-03, 1000 tokens/s, 0:00:0")
    assert lines[-1].startswith("train all: step 1000/1000 (100 %)")
    assert len(printed(io.StringIO(), 1000, done=500)) == 5
    assert printed(io.StringIO(), 1000, quiet=True) == []
    bar = printed(Terminal(), 50)
    assert "50/50" in bar[-1]
    assert "loss=1.250" in bar[-1]
    assert not any(line.startswith("train all: step") for line in bar)


def test_a_slow_log_has_a_line_every_half_minute() -> None:
    lines = printed(io.StringIO(), 100_000, done=99_970, seconds_per_step=10)
    assert len(lines) == 10, "three steps of ten seconds each make a line"
    assert "0:04:30 left" in lines[0]
