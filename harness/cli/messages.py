"""Messages to the user: the one logging handler of the program, on stderr.

Every module writes its messages with ``logging.getLogger(__name__)``: INFO is a note, WARNING needs attention. Results
go to stdout, messages never do.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

_PACKAGES = ("harness", "methods", "tasks")
# About the source of installed packages: users can do nothing about them.
_IGNORED: tuple[dict[str, Any], ...] = (
    {"category": SyntaxWarning},
    {"message": "pkg_resources is deprecated"},
    {"message": "`is_gradient_checkpointing` is deprecated"},  # peft reads this attribute of a transformers model
    {"message": "COBYLA: Invalid"},  # scipy corrects the step size and the number of trials that nevergrad passes
)
_PYTHON = "py.warnings"  # the name that logging.captureWarnings uses


def is_main_process() -> bool:
    """Whether this is rank 0 of the processes that torchrun starts, or the only process."""
    # A RANK that another program has left behind, without a WORLD_SIZE, means nothing.
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


class StderrHandler(logging.Handler):
    """Writes ``note: …``, ``warning: …`` and ``error: …`` lines; ranks above 0 write errors only.

    The same line is written once, however many runs of a command it applies to.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO if is_main_process() else logging.ERROR)
        self._written: set[str] = set()

    def only_warnings(self) -> None:
        """Leave out notes."""
        self.setLevel(max(self.level, logging.WARNING))

    def emit(self, record: logging.LogRecord) -> None:
        word = "note" if record.levelno < logging.WARNING else "warning"
        line = f"{'error' if record.levelno >= logging.ERROR else word}: {self.format(record)}"
        if line not in self._written:
            self._written.add(line)
            click.echo(line, err=True)


@contextmanager
def messages_on_stderr() -> Iterator[StderrHandler]:
    """Within this context, log records of the project and Python's warnings are written to stderr."""
    handler = StderrHandler()
    loggers = [logging.getLogger(name) for name in (*_PACKAGES, _PYTHON)]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            for ignored in _IGNORED:
                warnings.filterwarnings("ignore", **ignored)
            warnings.showwarning = _log_warning
            yield handler
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def _log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """``warnings.showwarning``: the message and the place that it comes from, on one line."""
    text = " ".join(str(message).split())
    logging.getLogger(_PYTHON).warning("%s (%s, %s:%d)", text, category.__name__, filename, lineno)
