"""Memory that this process uses."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes() -> int | None:
    """What this process has in memory now; None where the system does not tell (only Linux does)."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Begin to measure the peak anew, where the system allows it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR.write_text("5")  # Linux: forget the peak so far
    except OSError:
        return


def peak_bytes(device: torch.device, before: int | None) -> int | None:
    """The peak since ``reset_peak``: allocated on a GPU; else resident, beyond ``before`` a model was loaded."""
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
