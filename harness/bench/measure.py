"""Measures a method's training step next to PEFT's LoRA, a plain loop over experts, and the frozen model.

All are timed in interleaved rounds, in one process and on the same batch; a ratio is the median over the rounds.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import torch
from torch import nn

from harness.bench.clock import Clock, Interval, paired, undisturbed
from harness.bench.contenders import Contender, frozen, loop, peft_lora, twin
from harness.bench.stages import Stages
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.errors import UsageError
from harness.method import AdapterMethod, HasExperts
from harness.models.loading import LoadedModel
from harness.registry import METHODS, method_class, plugins
from harness.training.batch import Batch, Weighted, padded

LOG: Final = logging.getLogger(__name__)
SEQUENCE_TOKENS = 256
TOKENS_PER_TARGET = 8
T = TypeVar("T")
OURS, PEFT, LOOP, FROZEN = "ours", "peft", "loop", "frozen"
OUT_OF_MEMORY: Final = "out of memory"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One contender's median step, with figures that only a GPU has (None on a CPU).

    kernel_seconds: time in kernels, without waiting. peak_bytes: weights, adapter, optimiser state and one step.
    """

    seconds: float
    tokens_per_second: float
    kernel_seconds: float | None
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One kind of training stage of a method: all of its parameters and tasks, or some of them.

    n_tasks, n_trained: tasks and parameters that the stage trains. peft_rank: the rank of PEFT's LoRA.
    measured: by contender. ours_to_peft, loop_to_ours, ours_to_frozen: ratios of seconds; None if one is missing.
    absent: why a contender is missing, by its name.
    """

    method: str
    stage: str
    n_tasks: int
    stored_rank: int
    active_rank: int
    stored: int
    active: int
    n_trained: int
    peft_rank: int
    measured: Mapping[str, Measured]
    ours_to_peft: Interval | None
    loop_to_ours: Interval | None
    ours_to_frozen: Interval | None
    absent: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """What is measured.

    tokens: tokens of a step. routes: "rows" for one route per sequence, or "tokens" as in packed training.
    """

    tokens: int
    tasks: int
    rounds: int
    routes: str
    threads: int

    @property
    def sequence_tokens(self) -> int:
        """Tokens of each sequence."""
        return min(SEQUENCE_TOKENS, self.tokens)


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The rows of all methods, and what they were measured on.

    clock: "cpu" (CPU time) or "wall". not_measured: why a method has no row, by its name.
    """

    model: str
    n_parameters: int
    device: str
    dtype: str
    clock: str
    plan: BenchPlan
    rows: Sequence[BenchRow]
    not_measured: Mapping[str, str] = field(default_factory=dict)


def bench(loaded: LoadedModel, label: str, methods: Mapping[str, AdapterMethod], plan: BenchPlan) -> BenchReport:
    """Measure methods on a model, one after the other.

    Args:
        label: the model's name in the report. methods: by name, see ``chosen``.

    Raises: UsageError for a model with an encoder.
    """
    if loaded.encoder_decoder:
        raise UsageError(
            f"{label} has an encoder, and harness bench measures decoder-only models: give another --model, or --shape"
        )
    clock = Clock(device=loaded.device, threads=plan.threads)
    rows: list[BenchRow] = []
    not_measured: dict[str, str] = {}
    with undisturbed(clock):
        for name, method in methods.items():
            LOG.info("measuring %s", name)
            measured = _measured_stages(loaded, name, method, plan, clock)
            rows += measured
            if not measured:
                not_measured[name] = OUT_OF_MEMORY
    return BenchReport(
        model=label,
        n_parameters=loaded.n_parameters,
        device=torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else "CPU",
        dtype=str(loaded.dtype).removeprefix("torch."),
        clock=clock.kind,
        plan=plan,
        rows=rows,
        not_measured=not_measured,
    )


def _measured_stages(
    loaded: LoadedModel, name: str, method: AdapterMethod, plan: BenchPlan, clock: Clock
) -> list[BenchRow]:
    """The rows of one method; an empty list if its adapter does not fit the memory."""
    try:
        stages = TimedStages(loaded, name, method, plan, clock)
    except torch.OutOfMemoryError:
        stages = None
    if stages is None:
        clock.free_memory()
        return []
    stages.run()
    return stages.rows


def chosen(names: Sequence[str]) -> dict[str, AdapterMethod]:
    """Methods with default fields; without names all that train. Raises: UsageError for a name that does not."""
    methods = {name: method_class(name)() for name in names or plugins(METHODS)}
    trained = {name: m for name, m in methods.items() if isinstance(m, AdapterMethod) and m.trains}
    for name in names:
        if name not in trained:
            raise UsageError(f"method {name!r} has no training step to measure: choose one that trains (harness list)")
    return trained


class TimedStages(Stages[BenchRow]):
    """Times each kind of stage."""

    def __init__(self, loaded: LoadedModel, name: str, method: AdapterMethod, plan: BenchPlan, clock: Clock) -> None:
        super().__init__(loaded, method, plan.tasks)
        self.name, self.plan, self.clock = name, plan, clock

    def measure(self, stage: str, own: Contender, tasks: Sequence[str], n_trained: int) -> BenchRow:
        ranks = self.method.ranks(len(self.tasks))
        rank = round(ranks.stored * n_trained / self.size.stored)
        contenders, absent = self._contenders(own, rank, n_trained == self.size.stored)
        batch = make_batch(self.loaded, Routes(self.tasks), tasks, self.plan)
        seconds, measured = self._measure(contenders, batch, absent)

        def ratio(a: str, b: str) -> Interval | None:
            return paired(seconds[a], seconds[b]) if {a, b} <= seconds.keys() else None

        return BenchRow(
            method=self.name,
            stage=stage,
            n_tasks=len(tasks),
            stored_rank=ranks.stored,
            active_rank=ranks.active,
            stored=self.size.stored,
            active=self.size.active,
            n_trained=n_trained,
            peft_rank=rank,
            measured=measured,
            ours_to_peft=ratio(OURS, PEFT),
            loop_to_ours=ratio(LOOP, OURS),
            ours_to_frozen=ratio(OURS, FROZEN),
            absent=absent,
        )

    def _contenders(self, own: Contender, rank: int, whole: bool) -> tuple[dict[str, Contender], dict[str, str]]:
        """The contenders of one row and why others are missing. Two whose ratio is reported are neighbours."""
        base: nn.Module = self.loaded.model
        found, absent = {FROZEN: frozen(base)}, {}
        if not rank or not self.layers:
            absent[PEFT] = "the method has no rank, or adapts no linear layer"
        else:
            try:
                found[PEFT] = peft_lora(base, self.layers, rank)
            except ImportError:
                absent[PEFT] = "PEFT is not installed: pip install 'mtlora-harness[peft]'"
            except torch.OutOfMemoryError:
                absent[PEFT] = OUT_OF_MEMORY
        found[OURS] = own
        if whole and isinstance(self.adapter, HasExperts) and self.adapter.experts():
            try:
                looped = loop(base, self.method.attach(twin(base), self.tasks, seed=self.seed))
                found[LOOP] = dataclasses.replace(looped, reads=own.reads)
            except torch.OutOfMemoryError:
                absent[LOOP] = OUT_OF_MEMORY
        else:
            absent[LOOP] = "the stage does not train experts with a gate"
        return found, absent

    def _measure(
        self, contenders: dict[str, Contender], batch: Batch, absent: dict[str, str]
    ) -> tuple[dict[str, list[float]], dict[str, Measured]]:
        """The seconds of each round, and the figures of each contender. Every other round is in reverse order.

        A contender that runs out of memory is moved from ``contenders`` to ``absent``, and the others are measured.
        """
        seconds: dict[str, list[float]] = {name: [] for name in contenders}

        def seconds_of(number: int) -> Callable[[Contender], float]:
            return lambda contender: self.clock.seconds(_step(contender, batch, number))

        def figures_of(name: str) -> Callable[[Contender], Measured]:
            return lambda contender: self._measured(contender, batch, seconds[name])

        for name in list(contenders):  # The first step allocates the optimiser's state.
            self._try(contenders, absent, name, seconds_of(0))
        for number in range(self.plan.rounds):
            for name in list(contenders)[:: -1 if number % 2 else 1]:
                taken = self._try(contenders, absent, name, seconds_of(number + 1))
                seconds[name] += [] if taken is None else [taken]
        found = {name: self._try(contenders, absent, name, figures_of(name)) for name in list(contenders)}
        measured = {name: figures for name, figures in found.items() if figures is not None}
        return {name: seconds[name] for name in measured}, measured

    def _try(
        self, contenders: dict[str, Contender], absent: dict[str, str], name: str, work: Callable[[Contender], T]
    ) -> T | None:
        """The result of ``work`` on a contender; None if memory runs out, and then all that it holds is released."""
        try:
            return work(contenders[name])
        except torch.OutOfMemoryError:
            absent[name] = OUT_OF_MEMORY
        LOG.warning("%s: %s runs out of memory and is left out", self.name, name)
        contenders.pop(name).release()
        self.clock.free_memory()
        return None

    def _measured(self, contender: Contender, batch: Batch, seconds: Sequence[float]) -> Measured:
        median = statistics.median(seconds)
        work = _step(contender, batch, self.plan.rounds + 1)
        peak = self.clock.peak_bytes(work)
        if peak is not None:
            weights = {id(p): p.numel() * p.element_size() for p in self.loaded.model.parameters()}
            peak += sum(weights.values()) + contender.state_bytes()
        return Measured(
            seconds=median,
            tokens_per_second=batch.inputs["input_ids"].numel() / median,
            kernel_seconds=self.clock.kernel_seconds(work),
            peak_bytes=peak,
        )


def _step(contender: Contender, batch: Batch, number: int) -> Callable[[], None]:
    return lambda: contender.step(batch, number)


def make_batch(loaded: LoadedModel, routes: Routes, tasks: Sequence[str], plan: BenchPlan) -> Batch:
    """Sequences of random tokens, cycling through the tasks, with the plan's number of tokens (at least one)."""
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    drawn = torch.Generator().manual_seed(0)
    n_rows = max(1, plan.tokens // plan.sequence_tokens)
    n_prompt = plan.sequence_tokens - max(1, plan.sequence_tokens // TOKENS_PER_TARGET)
    rows = []
    for i in range(n_rows):
        ids = torch.randint(vocabulary, (plan.sequence_tokens,), generator=drawn).tolist()
        task = tasks[i % len(tasks)]
        row = Encoded(task=task, prompt=tuple(ids[:n_prompt]), target=tuple(ids[n_prompt:]), truncated=False)
        weight = 1 / (n_rows * len(row.target))
        rows.append(Weighted(sequence=row, task=routes.index(task), position=i, weight=weight))
    batch = padded(rows).placed(loaded.device)
    if plan.routes == "rows":
        return batch
    return dataclasses.replace(
        batch,
        routes=batch.routes[:, None].expand(-1, plan.sequence_tokens).contiguous(),
        owner=batch.owner[:, None].expand(-1, plan.sequence_tokens).contiguous(),
    )
