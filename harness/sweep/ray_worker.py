"""What a Ray worker does for a sweep: run ``harness run`` as a child process, and report about its node."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

# The option of Linux's prctl that sends a signal to a process when its parent dies.
_PR_SET_PDEATHSIG: Final = 1
_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A command to run on a node. folder: its working directory. search_path: the value of PYTHONPATH, if it has one.

    log_file: the file for its output.
    """

    command: tuple[str, ...]
    folder: str
    log_file: str
    search_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A node: the content of the token in the folder of runs (None if it is not there), and its packages."""

    host: str
    token: str | None
    has_folder: bool
    versions: dict[str, str | None] = field(default_factory=dict)


def run(request: RunRequest) -> int:
    """Run the command until it ends. Returns: its exit status.

    If the task is cancelled or the worker dies, the command gets SIGTERM, so that it saves its state.
    """
    log_file = Path(request.log_file)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    path = {} if request.search_path is None else {"PYTHONPATH": request.search_path}
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            request.command,
            cwd=request.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **path},
            preexec_fn=_ends_with_parent(),
        )
        try:
            # Ray interrupts Python code, but not a blocking system call such as that of ``process.wait()``.
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return process.returncode


def probe(token: str, folder: str, packages: Sequence[str]) -> Probe:
    """What this node has of the folder of runs, the working directory and the packages."""
    path = Path(token)
    return Probe(
        host=platform.node(),
        token=path.read_text(encoding="utf-8") if path.is_file() else None,
        has_folder=Path(folder).is_dir(),
        versions={package: _version(package) for package in packages},
    )


def _ends_with_parent() -> Callable[[], None] | None:
    """A function for the child process that asks Linux for SIGTERM when the worker is killed; None elsewhere."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None, use_errno=True)  # Loaded before the fork, since a child may only call it.
    return lambda: library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
