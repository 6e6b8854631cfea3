"""Memory of this process, on the CPU and on a GPU."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


# What libraries raise, as a plain RuntimeError, if the memory of a GPU does not hold their workspace.
_OUT_OF_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a device was too small, also if a library says so in an error of another class."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def resident_bytes() -> int | None:
    """Resident memory of this process now; None if the system does not report it (only Linux does)."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Start a new measurement of the peak, where the system supports it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR.write_text("5")  # Linux: 5 resets the peak of the resident memory
    except OSError:
        return


def peak_bytes(device: torch.device, before: int | None) -> int | None:
    """Peak memory since ``reset_peak``: allocated bytes on a GPU, else resident bytes minus ``before``.

    before: resident bytes before the model was loaded; None if the system does not report them.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = _status("VmHWM")
    return None if peak is None or before is None else max(0, peak - before)


def _status(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
