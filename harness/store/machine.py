"""The machine of a run, as far as it can change the result of a run with the same run_id."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_CPUINFO: Final = Path("/proc/cpuinfo")
_LABELS: Final = {
    "cpu": "CPU",
    "machine": "architecture",
    "instructions": "instruction set",
    "torch_threads": "threads",
    "gpu": "GPU",
    "driver": "GPU driver",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
    "tf32": "TF32",
}


def hardware() -> dict[str, Any]:
    """CPU, threads and instruction set of this process; with a GPU its model, memory, driver and numeric settings.

    Nothing identifies the machine itself: neither its name nor any path.
    """
    import torch

    found: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": cpu_model(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.cuda.is_available():
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory,
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
    return found


def cpu_model() -> str | None:
    """``AMD EPYC 7B13``: the model's name; None if the system does not name it."""
    try:
        if _CPUINFO.is_file():
            return parse_cpuinfo(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
        if platform.system() == "Darwin":
            return _output("sysctl", "-n", "machdep.cpu.brand_string")
    except OSError:
        return None
    return platform.processor() or None


def parse_cpuinfo(text: str) -> str | None:
    """The model's name in /proc/cpuinfo; on Arm, which has no names there, implementer and part."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, sign, value = line.partition(":")
        if sign:
            values.setdefault(key.strip(), value.strip())
    if name := values.get("model name"):
        return name
    part = [values[key] for key in ("CPU implementer", "CPU part") if key in values]
    return f"Arm {' '.join(part)}" if part else None


def differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """``CPU AMD EPYC and Intel Xeon; threads 1 and 2``: what differs, of the values that both records have."""
    return [
        f"{label} {one[key]} and {two[key]}"
        for key, label in _LABELS.items()
        if one.get(key) is not None and two.get(key) is not None and one[key] != two[key]
    ]


def _driver() -> str | None:
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if lines else None
