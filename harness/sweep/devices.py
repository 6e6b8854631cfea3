"""The GPUs of a sweep on this machine: which ones there are, and how many runs each has room for."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from typing import Final

from harness.errors import UsageError
from harness.store.run_directory import RunDirectory

LOG: Final = logging.getLogger(__name__)

AUTO: Final = "auto"
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"

_MIB: Final = 2**20
# The allocator holds more than a run's tensors: fragments, and blocks that it keeps for later.
_MARGIN: Final = 1.25
# Memory of a process on a GPU that no tensor accounts for: its CUDA context, and the libraries' workspaces.
_CONTEXT: Final = 2**30


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
            "To start several runs on one GPU, give --per-device"
        )
    if not _gpu_is_available():
        LOG.warning("--devices %s: no GPU is available on this machine, so the runs use its CPU", text)
    return devices


def parse_per_device(text: str | None, devices: Sequence[str]) -> int | str | None:
    """The runs of ``--per-device``: a number, "auto" for as many as measured memory allows, or None for no choice.

    Raises: UsageError for another value, or without ``--devices``.
    """
    if text is None:
        return None
    if not devices:
        raise UsageError(f"--per-device {text}: give --devices too, since it is a number of runs on each of them")
    if text.strip().lower() == AUTO:
        return AUTO
    if not text.strip().isdecimal() or int(text) < 1:
        raise UsageError(f"--per-device {text!r}: give a whole number of runs, 1 or more, or auto")
    return int(text)


def free_memory(device: str) -> int:
    """The bytes of a GPU that no process uses. device: as in ``CUDA_VISIBLE_DEVICES``.

    It is measured by the driver's tool, which opens no CUDA context of its own. Raises: UsageError without an answer.
    """
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i", device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return int(done.stdout.strip()) * _MIB
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = " ".join(str(getattr(error, "stdout", None) or error).split())[:200]
        raise UsageError(
            f"--per-device auto: nvidia-smi does not report the free memory of GPU {device} ({said}). "
            "Give a number of runs instead, such as --per-device 2"
        ) from error


def measured_peak(run: RunDirectory) -> int | None:
    """The most GPU memory in bytes that a finished run has used; None if it is not finished or used no GPU."""
    record = run.record()
    if record is None or "gpu" not in record.provenance.hardware:
        return None
    peaks = [part.peak_memory_bytes for part in (record.training, record.generation) if part is not None]
    return max((peak for peak in peaks if peak is not None), default=None)


def places(free: int, peak: int) -> int:
    """How many runs with this peak of memory fit into the free bytes of a GPU; one is always tried."""
    return max(1, int(free // (peak * _MARGIN + _CONTEXT)))


def _gpu_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


def _visible_devices() -> tuple[str, ...]:
    given = os.environ.get(VISIBLE)
    if given is not None:  # ids of a Slurm job or a user, which CUDA would otherwise renumber from 0
        return tuple(part.strip() for part in given.split(",") if part.strip() not in ("", "-1"))
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))
