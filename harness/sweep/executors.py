"""Executors, which run the jobs of a sweep: an executor starts one run and returns a handle to it.

The scheduler decides what runs and when. An executor for a cluster is another class with the method ``start``.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from harness.errors import UsageError
from harness.sweep.entries import arguments
from harness.sweep.jobs import Job

LOG: Final = logging.getLogger(__name__)

AUTO: Final = "auto"
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"


class RunProcess(Protocol):
    """A run that was started; ``subprocess.Popen`` is one."""

    def poll(self) -> int | None:
        """The exit status, or None while the run is still running."""

    def terminate(self) -> None:
        """Signal the run to save its state and stop; does not wait for it."""

    def wait(self) -> int:
        """Wait for the run to end. Returns: its exit status."""


class Executor(Protocol):
    """Starts runs. The run's directory is where the scheduler reads its result, so it must be on a shared folder."""

    def start(self, job: Job) -> RunProcess:
        """Start ``harness run`` for the job, with its output in ``job.log_file``; does not wait for it."""


@dataclass
class LocalExecutor:
    """Runs each job as a process on this machine.

    devices: ids of the GPUs as in ``CUDA_VISIBLE_DEVICES``. Each run gets one of them, the one with the fewest running
        runs, so that two runs share a GPU only if more runs than GPUs are running. Empty: the environment is inherited.
    command: the command that is started with ``run`` and the options of the job.
    """

    devices: tuple[str, ...] = ()
    command: tuple[str, ...] = field(default_factory=lambda: (str(Path(sys.executable).with_name("harness")),))

    def __post_init__(self) -> None:
        self._started: dict[str, list[subprocess.Popen[bytes]]] = {device: [] for device in self.devices}

    def start(self, job: Job) -> RunProcess:
        device = self._least_used()
        environment = dict(os.environ) if device is None else {**os.environ, _VISIBLE: device}
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
        return min(self._started, key=lambda device: len(self._started[device]), default=None)


def parse_devices(text: str | None) -> tuple[str, ...]:
    """The GPUs of ``--devices``: "0,1" as given, "auto" for every visible GPU, None for no choice.

    Raises: UsageError for an empty or repeated id, and for "auto" without a GPU.
    """
    if text is None:
        return ()
    if text.strip().lower() == AUTO:
        devices = _visible_devices()
        if not devices:
            raise UsageError("--devices auto: no GPU is visible. Leave --devices out to run on the CPU")
        return devices
    devices = tuple(part.strip() for part in text.split(","))
    if not all(devices) or len(set(devices)) < len(devices):
        raise UsageError(
            f"--devices {text!r}: give different ids of GPUs separated by commas, such as 0,1, or auto. "
            "To start several runs on one GPU, give a larger --jobs"
        )
    if not _gpu_is_available():
        LOG.warning("--devices %s: no GPU is available on this machine, so the runs use its CPU", text)
    return devices


def _gpu_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


def _visible_devices() -> tuple[str, ...]:
    given = os.environ.get(_VISIBLE)
    if given is not None:  # ids of a Slurm job or a user, which CUDA would otherwise renumber from 0
        return tuple(part.strip() for part in given.split(",") if part.strip() not in ("", "-1"))
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))
