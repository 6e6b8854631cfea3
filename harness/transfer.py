"""Copies to the device that no host waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Devices that share the host's memory, or have no pinned memory.
_UNPINNED: Final = ("cpu", "mps", "meta")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A copy from the CPU is queued there, after the work before it, and returns at once.

    From ordinary memory the host would wait for all of that work. Pinned memory stays reserved until it has been read.
    """
    if tensor.device == device or tensor.device.type != "cpu" or device.type in _UNPINNED:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
