"""Equal bits from equal work on one GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

_WORKSPACE: Final = "CUBLAS_WORKSPACE_CONFIG"


def reserve_workspace() -> None:
    """Give cuBLAS a workspace of a fixed size, so that it always divides a product in the same way.

    cuBLAS reads the variable when it starts: call this before the first product on a GPU.
    """
    os.environ.setdefault(_WORKSPACE, ":4096:8")


@contextmanager
def deterministic_algorithms(on: bool) -> Iterator[None]:
    """While open, PyTorch uses only kernels that give the same bits every time, if ``on``."""
    settings: Any = torch.utils.deterministic
    before, fills = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    try:
        if on:
            torch.use_deterministic_algorithms(True)
            # Filling new memory with NaN would find mistakes in kernels, and costs a launch for each tensor.
            settings.fill_uninitialized_memory = False
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = fills
