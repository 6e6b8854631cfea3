"""The engine of a sweep, as ``--engine``, ``--devices`` and ``--per-device`` choose it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.sweep.devices import AUTO, parse_devices, parse_per_device
from harness.sweep.executors import Executor, LocalExecutor
from harness.sweep.ray_engine import RayExecutor, parse_engine


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The options of the same names."""

    engine: str = "local"
    devices: str | None = None
    per_device: str | None = None


@contextmanager
def open_executor(options: EngineOptions, out: Path) -> Iterator[Executor]:
    """The executor of a sweep into the folder ``out``, connected while the context is open. Raises: UsageError."""
    address = parse_engine(options.engine)
    if address is None:
        gpus = parse_devices(options.devices)
        yield LocalExecutor(devices=gpus, per_device=parse_per_device(options.per_device, gpus))
        return
    if options.devices is not None:
        raise UsageError("--engine ray assigns the GPUs of its cluster itself: leave --devices out")
    shared = parse_per_device(options.per_device, (options.engine,))
    if shared == AUTO:
        raise UsageError("--engine ray shares a GPU among a number of runs: give one, such as --per-device 2")
    executor = RayExecutor(out=out, address=address or None, per_device=int(shared or 1))
    try:
        yield executor
    finally:
        executor.close()
