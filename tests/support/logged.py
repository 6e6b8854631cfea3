"""What the project logs while a test runs something."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def messages(logger: str = "harness") -> Iterator[list[str]]:
    """The messages of INFO and above, in a list that grows while the context is open."""
    source, collector = logging.getLogger(logger), _Collector()
    level = source.level
    source.addHandler(collector)
    source.setLevel(logging.INFO)
    try:
        yield collector.lines
    finally:
        source.removeHandler(collector)
        source.setLevel(level)
