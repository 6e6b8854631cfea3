"""Optimiser steps of a stage: AdamW, warm-up, linear decay, clipping, gradient accumulation over micro-batches."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.errors import NotFinite, TrainingError
from harness.method import Adapter
from harness.models.loading import LoadedModel
from harness.runtime.distributed import SINGLE_PROCESS, ProcessGroup, partition_by_length
from harness.runtime.memory import is_out_of_memory
from harness.seeding import stable_seed
from harness.training.batch import Batch, Weighted, token_losses, weigh
from harness.training.optimiser import TaskAdamW, TrainedParameter
from harness.training.packing import Layout, micro_tokens

# Below this scale of fp16 losses an overflow of the gradient means divergence, not a wrong scale.
_LEAST_SCALE = 2.0**-10


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The statistics of one step, over all processes.

    loss: the weighted mean that was minimised. by_task: the mean token loss of each task of the step.
    n_tokens: of prompts and targets. stop: at least one process got a signal to stop.
    """

    loss: float
    by_task: Mapping[str, float]
    grad_norm: float
    lr: float
    n_tokens: int
    n_target_tokens: int
    seconds: float
    stop: bool = False


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over the share ``warmup`` of the steps, then linear decay towards 0; ``step`` counts from 0."""
    warm = math.ceil(steps * warmup)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (steps - step) / max(1, steps - warm)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The parameters that a stage trains, by name.

    key: seed and tasks, on which dropout depends in addition to step, process and micro-batch.
    reads: the adapter chooses routes by reading prompts (trait LABEL_FREE).
    """

    name: str
    steps: int
    key: tuple[object, ...]
    reads: bool
    trained: Mapping[str, TrainedParameter]

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The parameters themselves."""
        return {name: trained.parameter for name, trained in self.trained.items()}


@dataclass(frozen=True, kw_only=True)
class StepBatches:
    """The micro-batches of one process's share of a step, on the device.

    micro_tokens: the size that they were made for; the step makes others if memory has run out since.
    """

    batches: Sequence[Batch]
    micro_tokens: int


class StepRunner:
    """Performs the optimiser steps of one stage.

    micro_tokens: the maximum number of tokens of a micro-batch; halved when the device runs out of memory.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        adapter: Adapter,
        config: TrainConfig,
        stage: Stage,
        layout: Layout,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.loaded, self.adapter, self.config, self.stage = loaded, adapter, config, stage
        self.layout, self.processes = layout, processes
        self.micro_tokens = micro_tokens(config, loaded.device)
        self.device = loaded.device
        self.model = torch.compile(loaded.model, dynamic=True) if config.compile else loaded.model
        # Scales losses so that small gradients do not underflow in fp16; without effect in other precisions.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=loaded.dtype == torch.float16)
        self.optimiser = TaskAdamW(stage.trained.values(), config)

    def collate(self, sequences: Sequence[Encoded], routes: Routes) -> StepBatches:
        """This process's micro-batches of a step. It can be called ahead, from another thread."""
        mine, micro_tokens = self._mine(sequences, routes), self.micro_tokens
        parts = self.layout.split([len(w.sequence) for w in mine], micro_tokens)
        batches = [self.layout.collate([mine[i] for i in part], self.loaded) for part in parts]
        return StepBatches(batches=batches, micro_tokens=micro_tokens)

    def step(
        self,
        number: int,
        sequences: Sequence[Encoded],
        routes: Routes,
        stop: bool = False,
        batches: StepBatches | None = None,
    ) -> StepResult:
        """Perform one optimiser step on ``sequences``, of which each process gets its share.

        If memory runs out, the micro-batches are halved and the step is repeated; its result is the same.

        Args:
            number: counts from 0.
            sequences: those of the whole step, the same in every process.
            routes: the tasks that the adapter was attached for.
            stop: this process got a signal to stop.
            batches: those of ``collate``, if they were made ahead.

        Raises: NotFinite if the loss or the gradient is not finite; TrainingError if one sequence is too long.
        """
        started = time.perf_counter()
        self.adapter.begin_step(self.stage.name, number)
        sums = self.processes.all_reduce(
            torch.cat([self._gradients(number, sequences, routes, batches), self._flag(stop)])
        )
        self.processes.all_reduce_gradients(self.stage.parameters.values())
        self.scaler.unscale_(self.optimiser)
        norm = self._clip()
        loss, *by_task, stopped, norm = torch.cat([sums, norm.double()[None]]).tolist()
        self._check(loss, norm, number, sequences)
        lr = learning_rate(number, self.stage.steps, self.config.lr, self.config.warmup)
        self.optimiser.set_lr(lr)
        self.optimiser.present = frozenset(routes.index(s.task) for s in sequences)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        means = dict(zip(routes.tasks, by_task, strict=True))
        n_targets = {t: sum(len(s.target) for s in sequences if s.task == t) for t in {s.task for s in sequences}}
        return StepResult(
            loss=loss,
            by_task={t: means[t] / n for t, n in sorted(n_targets.items())},
            grad_norm=norm,
            lr=lr,
            n_tokens=sum(map(len, sequences)),
            n_target_tokens=sum(n_targets.values()),
            seconds=time.perf_counter() - started,
            stop=bool(stopped),
        )

    def state(self) -> dict[str, Tensor]:
        """The optimiser's state by ``<parameter>/<key>``."""
        state = self.optimiser.state
        return {f"{n}/{k}": v for n, p in self.stage.parameters.items() for k, v in state.get(p, {}).items()}

    def load_state(self, saved: Mapping[str, Tensor], scaler: Mapping[str, Any]) -> None:
        """The inverse of ``state`` and of ``scaler.state_dict``."""
        for name, parameter in self.stage.parameters.items():
            entries = {k.rsplit("/", 1)[1]: v for k, v in saved.items() if k.rsplit("/", 1)[0] == name}
            if entries:
                on_device = self.optimiser.is_fused
                self.optimiser.state[parameter] = {
                    k: v.to(parameter.device) if v.dim() or on_device else v for k, v in entries.items()
                }
        if scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(scaler))

    def _mine(self, sequences: Sequence[Encoded], routes: Routes) -> list[Weighted]:
        weighted = weigh(sequences, self.config.loss, routes)
        parts = partition_by_length(list(map(len, sequences)), self.processes.world_size)
        return [weighted[i] for i in parts[self.processes.rank]]

    def _gradients(
        self, number: int, sequences: Sequence[Encoded], routes: Routes, ahead: StepBatches | None
    ) -> Tensor:
        """Compute the gradients of this process's share of the step.

        Returns: (1 + tasks,) float64, its share of the loss, then of the summed token loss of each task.
        """
        while True:
            if ahead is None or ahead.micro_tokens != self.micro_tokens:
                ahead = self.collate(sequences, routes)
            try:
                return self._accumulate(number, ahead.batches, len(sequences), len(routes))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self.optimiser.zero_grad(set_to_none=True)
            self._halve([len(w.sequence) for w in self._mine(sequences, routes)])

    def _accumulate(self, number: int, batches: Sequence[Batch], n_sequences: int, n_tasks: int) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        sums = torch.zeros(1 + n_tasks, dtype=torch.float64, device=self.device)
        for micro, batch in enumerate(batches):
            torch.manual_seed(stable_seed("dropout", *self.stage.key, number, self.processes.rank, micro))
            # The route stays set until backward has ended, because checkpointed layers repeat their forward there.
            with self.adapter.route(batch.routes, batch.examples):
                losses = token_losses(self.model, self.adapter, batch, self.stage.reads)
                loss = (losses * batch.weights).sum() + self.adapter.penalty() / n_sequences
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            sums[0] += loss.detach()
            # A product, because an indexed sum has no fixed order of additions on a GPU.
            own = (batch.tasks == torch.arange(n_tasks, device=self.device)[:, None]).double()
            sums[1:] += own @ losses.detach().double()
        return sums

    def _flag(self, stop: bool) -> Tensor:
        return torch.full((1,), float(stop), dtype=torch.float64, device=self.device)

    def _clip(self) -> Tensor:
        limit = self.config.clip if self.config.clip is not None else math.inf
        return nn.utils.clip_grad_norm_(list(self.stage.parameters.values()), limit).to(self.device)

    def _halve(self, lengths: Sequence[int]) -> None:
        used = max(sum(lengths[i] for i in part) for part in self.layout.split(lengths, self.micro_tokens))
        longest = max(lengths)
        if used <= longest:
            raise TrainingError(
                f"out of memory with a single sequence of {longest} tokens: set a smaller train.max_length, "
                "train.gradient_checkpointing=true, or use a smaller model"
            )
        self.micro_tokens = max(longest, min(self.micro_tokens, used) // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _check(self, loss: float, norm: float, number: int, sequences: Sequence[Encoded]) -> None:
        # With fp16 the scaler skips a step whose gradient overflowed, and lowers the scale for the next one.
        scaled = self.scaler.is_enabled() and self.scaler.get_scale() > _LEAST_SCALE
        if math.isfinite(loss) and (math.isfinite(norm) or scaled):
            return
        tasks = ", ".join(sorted({s.task for s in sequences}))
        raise NotFinite(
            f"the loss is {loss} and the gradient norm {norm} at step {number + 1}; tasks of the batch: {tasks}. "
            "The step was not applied. Try a smaller train.lr, or train.precision=fp32"
        )
