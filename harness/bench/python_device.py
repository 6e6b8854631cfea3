"""Registers a device that is implemented in Python, with autocast as other devices have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

from harness.errors import UsageError


class _Module:
    """The module ``torch.counted`` that PyTorch asks about the device."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Random numbers are drawn on the CPU."""

    def device_count(self) -> int:
        return 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_KEY: Final = "AutocastPrivateUse1"

# Autocast computes these in lower precision on every device that supports it.
_LOWER: Final = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")


def register(name: str) -> None:
    """Register the device once per process. Raises: UsageError with an older PyTorch."""
    if hasattr(torch, name):
        return
    setup = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        raise UsageError(f"counting launches needs torch 2.13 or newer, and this is {torch.__version__}: upgrade torch")
    # The first backward starts a thread for each device, and a device in Python cannot have one.
    torch.zeros((), requires_grad=True).backward()  # type: ignore[no-untyped-call]
    setup(name, backend_module=_Module())
    everything = torch.library.Library("_", "IMPL", _KEY)  # type: ignore[no-untyped-call]
    everything.fallback(torch.library.fallthrough_kernel)  # type: ignore[no-untyped-call]
    library = torch.library.Library("aten", "IMPL", _KEY)  # type: ignore[no-untyped-call]
    for operation in _LOWER:
        library.impl(operation, _lowered(name, getattr(torch.ops.aten, operation).default))  # type: ignore[no-untyped-call]
    _LIBRARIES.extend([everything, library])


_LIBRARIES: Final[list[Any]] = []  # A library's implementations end with it.


def _lowered(device: str, operation: Any) -> Callable[..., Any]:
    key: Any = torch._C._parse_dispatch_key(_KEY)
    without = torch._C.DispatchKeySet(key)

    def cast(value: Any, dtype: torch.dtype) -> Any:
        is_there = isinstance(value, Tensor) and value.device.type == device
        floats = is_there and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if floats else value

    def call(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(without):
            args, kwargs = pytree.tree_map(lambda value: cast(value, dtype), (args, kwargs))
            return operation(*args, **kwargs)

    return call
