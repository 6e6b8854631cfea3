"""Executors, which run the jobs of a sweep: an executor starts one run and returns a handle to it.

The scheduler decides what runs and when. An executor for a cluster is another class with the method ``start``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from harness.sweep.devices import AUTO, VISIBLE, free_memory, places
from harness.sweep.entries import arguments
from harness.sweep.jobs import Job

LOST: Final = -256
"""The exit status of a run whose machine or worker has died: to be started again. No signal has this number."""


class RunProcess(Protocol):
    """A run that was started; ``subprocess.Popen`` is one."""

    def poll(self) -> int | None:
        """The exit status (``LOST`` if it is not known), or None while the run is still running."""

    def terminate(self) -> None:
        """Signal the run to save its state and stop; does not wait for it."""

    def wait(self) -> int:
        """Wait for the run to end. Returns: its exit status."""


class Executor(Protocol):
    """Starts runs. The run's directory is where the scheduler reads its result, so it must be on a shared folder."""

    def start(self, job: Job) -> RunProcess:
        """Start ``harness run`` for the job, with its output in ``job.log_file``; does not wait for it."""

    def capacity(self, wanted: int | None, peak: int | None) -> int:
        """How many runs it starts at a time.

        Args:
            wanted: the number that the user asks for; None for as many as there is room for.
            peak: the most GPU memory in bytes that a finished run of the sweep has used; None without one.
        """


def run_command() -> tuple[str, ...]:
    """The installed command of this environment, which ``run`` and the options of a job follow."""
    return (str(Path(sys.executable).with_name("harness")),)


@dataclass
class LocalExecutor:
    """Runs each job as a process on this machine.

    devices: ids of the GPUs as in ``CUDA_VISIBLE_DEVICES``. Each run gets one of them, the one with the smallest share
        of its places in use, so that runs share a GPU only if more runs than GPUs are running. Empty: the environment
        is inherited.
    per_device: how many runs at most share a GPU; "auto" for as many as fit into its memory, going by the largest
        peak of the finished runs (one until a run has finished); None for no limit.
    command: the command that is started with ``run`` and the options of the job.

    Raises: UsageError if the memory of a device is needed and not known.
    """

    devices: tuple[str, ...] = ()
    per_device: int | str | None = None
    command: tuple[str, ...] = field(default_factory=run_command)

    def __post_init__(self) -> None:
        self._started: dict[str, list[subprocess.Popen[bytes]]] = {device: [] for device in self.devices}
        fixed = self.per_device if isinstance(self.per_device, int) else 1
        self._places = dict.fromkeys(self.devices, fixed)
        self._free = {device: free_memory(device) for device in self.devices} if self.per_device == AUTO else {}

    def capacity(self, wanted: int | None, peak: int | None) -> int:
        if self.per_device is None:
            return wanted or max(1, len(self.devices))
        if self.per_device == AUTO and peak is not None:
            self._places = {device: places(free, peak) for device, free in self._free.items()}
        room = sum(self._places.values())
        return room if wanted is None else min(wanted, room)

    def start(self, job: Job) -> RunProcess:
        device = self._least_used()
        environment = dict(os.environ) if device is None else {**os.environ, VISIBLE: device}
        job.log_file.parent.mkdir(parents=True, exist_ok=True)
        with job.log_file.open("wb") as log:
            process = subprocess.Popen(
                [*self.command, "run", *arguments(job.asked), "--out", str(job.out)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        if device is not None:
            self._started[device].append(process)
        return process

    def _least_used(self) -> str | None:
        for device, processes in self._started.items():
            self._started[device] = [p for p in processes if p.poll() is None]
        return min(self._started, key=lambda device: len(self._started[device]) / self._places[device], default=None)
