"""What the parts of ``gpu_check.py`` measure with: the device, random sequences, a method's training loop."""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor
from training_rows import synthetic_rows

from harness.bench.clock import Clock
from harness.bench.contenders import twin
from harness.bench.random_model import random_model
from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.generation.decoding import decode
from harness.method import Adapter, AdapterMethod, Trait
from harness.models.loading import LoadedModel
from harness.registry import method_class
from harness.training.attention import attention
from harness.training.compiled_blocks import CompiledBlocks
from harness.training.optimiser import trained_parameters
from harness.training.packing import Layout, choose_layout
from harness.training.step import Stage, StepRunner

KERNELS = ("flex_attention", None)
BLOCK = 128
"""Packed sequences are filled up to a multiple of this many tokens, as flex attention needs it."""


class Results(Protocol):
    """Where a part writes what it finds; ``gpu_check.Log`` is one."""

    def figure(self, what: str, value: Any) -> None: ...

    def verdict(self, what: str, value: float, sign: str, threshold: float) -> None: ...

    def skipped(self, why: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device and the sizes of what is measured on it. blocks: of both shapes; None: all of them."""

    device: torch.device
    large: str
    tokens: int
    rounds: int
    blocks: int | None

    @classmethod
    def find(cls, *, cpu: bool) -> Machine:
        """Raises: RuntimeError without a CUDA device, unless toys on a CPU are asked for."""
        if cpu:
            return cls(device=torch.device("cpu"), large="135m", tokens=96, rounds=1, blocks=1)
        if not torch.cuda.is_available():
            raise RuntimeError("no CUDA device: run on a machine with one, or give --cpu to try the script on toys")
        return cls(device=torch.device("cuda"), large="7b", tokens=4096, rounds=8, blocks=None)

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def model(self, shape: str = "135m", blocks: int | None = None, precision: Any = "bf16") -> LoadedModel:
        """A random model; on a CPU it is small and in float32."""
        if not self.is_gpu:
            precision, blocks = ("fp32" if precision == "bf16" else precision), 1
        return random_model(shape, blocks or self.blocks, precision, str(self.device))

    def ms(self, work: Callable[[], object], rounds: int | None = None) -> float:
        """The median milliseconds of a call, after two to warm up."""
        clock = Clock(device=self.device, threads=1)
        for _ in range(2):
            work()
        return 1e3 * statistics.median(clock.seconds(work) for _ in range(rounds or self.rounds))

    def peak_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.is_gpu else None


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the check. seconds: what it takes on a fast GPU."""

    name: str
    description: str
    seconds: float
    work: Callable[[Machine, Results], None]
    needs_gpu: bool = False


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Random sequences of PromptCBLUE's lengths, and the tasks that they are of."""

    rows: list[Encoded]
    routes: Routes


def rows_of(loaded: LoadedModel, tokens: int, seed: int = 0, longest: int = 1024) -> Rows:
    """Sequences of at most this many tokens together, and nearly as many."""
    options = argparse.Namespace(batch=16, steps=4, max_length=min(longest, tokens))
    tasks, pool = synthetic_rows(loaded, options)
    rows: list[Encoded] = []
    for row in pool(seed):
        if sum(map(len, rows)) + len(row) <= tokens:
            rows.append(row)
    return Rows(rows=rows, routes=Routes(tuple(tasks)))


@dataclass(frozen=True, kw_only=True)
class Training:
    """A method's training loop on a model, as ``harness run`` performs it."""

    steps: StepRunner
    adapter: Adapter
    routes: Routes

    @classmethod
    def of(cls, loaded: LoadedModel, name: str, layout: Layout | None = None, **config: Any) -> Training:
        """On a copy of the model that shares its weights. layout: None for the one that is chosen for the machine."""
        method = method_class(name)()
        assert isinstance(method, AdapterMethod)
        own = replace(loaded, model=twin(loaded.model).eval())
        routes = rows_of(own, 64).routes
        adapter = method.attach(own.model, routes.tasks, seed=0)
        settings = TrainConfig(**{"lr": 1e-5, "micro_tokens": 16384, **config})
        reads = Trait.LABEL_FREE in method.traits
        layout = layout or choose_layout(own, adapter, settings, reads)
        trained = trained_parameters(adapter, method)
        stage = Stage(name="all", steps=10**6, key=(0,), reads=reads, trained=trained)
        compiled = CompiledBlocks(own.model) if settings.compile else None
        steps = StepRunner(own, adapter, settings, stage, layout, compiled=compiled)
        return cls(steps=steps, adapter=adapter, routes=routes)

    def step(self, number: int, rows: Sequence[Encoded]) -> Any:
        model = self.steps.loaded.model
        with attention(model, self.steps.layout.attention):
            model.train()
            return self.steps.step(number, rows, self.routes)

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().clone() for name, p in self.adapter.trainable().items()}


def packed_with(kernel: str | None) -> Layout:
    return Layout(packed=True, attention=kernel, multiple=BLOCK if kernel else 1)


def always(rows: Tensor) -> AbstractContextManager[None]:
    return nullcontext()


def ms_per_token(machine: Machine, loaded: LoadedModel, n: int, context: Callable[[], Any]) -> float:
    """Milliseconds of one decoded token of n sequences that none of them ends before the others."""
    endless = replace(loaded, tokenizer=SimpleNamespace(eos_token_id=-1))
    loaded.model.generation_config.eos_token_id = None
    prompts = [[10 + (i + j) % 50 for i in range(64)] for j in range(n)]
    few, many = 2, 18

    def decoded(tokens: int) -> float:
        with context():
            return machine.ms(lambda: decode(endless, prompts, [tokens] * n, always), 2)

    return (decoded(many) - decoded(few)) / (many - few)


def count_waits(work: Callable[[], object]) -> int:
    """How often the host waits for the GPU, by torch's own debug mode."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
