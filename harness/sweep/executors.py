"""Starting the runs of a sweep as processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from harness.sweep.entries import arguments
from harness.sweep.jobs import Job

_LOGS: Final = "logs"


class Process(Protocol):
    """A run that was started: what is used of ``subprocess.Popen``."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def wait(self) -> int: ...


Launch = Callable[[Job], Process]


def start(job: Job) -> Process:
    """The installed command in a process of its own; what it says goes into logs/<run>.log."""
    command = Path(sys.executable).with_name("harness")
    _log(job).parent.mkdir(parents=True, exist_ok=True)
    with _log(job).open("wb") as log:
        return subprocess.Popen(
            [str(command), "run", *arguments(job.asked), "--out", str(job.out)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _log(job: Job) -> Path:
    return job.out / _LOGS / f"{job.run.name}.log"
