"""One optimiser step after another: AdamW, warm-up, linear decay, clipping, micro-batches."""

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
from harness.errors import NotFinite, TrainingError
from harness.method import Adapter
from harness.models.loading import LoadedModel
from harness.runtime.distributed import SINGLE_PROCESS, ProcessGroup, partition_by_length
from harness.seeding import stable_seed
from harness.training.batch import Weighted, token_losses, weigh
from harness.training.packing import Layout, micro_tokens

_LEAST_SCALE = 2.0**-10  # of fp16 losses: gradients that overflow even so are no matter of scale


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step reports, over all processes.

    loss: the weighted mean that was minimised; by_task: mean token loss per task; stop: some process was asked to stop.
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
    """Linear warm-up over ``warmup`` of the steps, then linear decay towards 0; step counts from 0."""
    warm = math.ceil(steps * warmup)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (steps - step) / max(1, steps - warm)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is trained: parameters by name, whose learning rates are multiplied by ``factors``.

    key: what dropout depends on, beside step, process and micro-batch (seed and tasks).
    reads: the adapter reads prompts to choose a route (trait LABEL_FREE).
    """

    name: str
    steps: int
    key: tuple[object, ...]
    reads: bool
    parameters: Mapping[str, nn.Parameter]
    factors: Mapping[str, float]


class Loop:
    """The optimiser of one stage and the model that it moves.

    micro_tokens: of a micro-batch; halved where the device's memory is too small.
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
        # Scales losses so that small gradients survive fp16; does nothing in other precisions.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=loaded.dtype == torch.float16)
        by_factor: dict[float, list[nn.Parameter]] = {}
        for name, parameter in stage.parameters.items():
            by_factor.setdefault(stage.factors[name], []).append(parameter)
        self.optimiser = torch.optim.AdamW(
            [{"params": parameters, "factor": factor} for factor, parameters in by_factor.items()],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )

    def step(self, number: int, rows: Sequence[Encoded], tasks: Sequence[str], stop: bool = False) -> StepResult:
        """One optimiser step on ``rows``, of which each process takes its share.

        Where memory is too small micro-batches are halved and the step is made again with the same numbers.

        Args:
            number: from 0. rows: of the whole step, the same in every process. tasks: names of the routes.
            stop: this process has been asked to stop.

        Raises: NotFinite where the loss or the gradient is not finite; TrainingError where one row is too large.
        """
        started = time.perf_counter()
        self.adapter.begin_step(self.stage.name, number)
        sums = self.processes.all_reduce(torch.cat([self._gradients(number, rows, tasks), self._flag(stop)]))
        self.processes.all_reduce_gradients(self.stage.parameters.values())
        self.scaler.unscale_(self.optimiser)
        norm = self._clip()
        loss, *by_task, stopped, norm = torch.cat([sums, norm.double()[None]]).tolist()
        self._check(loss, norm, number, rows)
        lr = learning_rate(number, self.stage.steps, self.config.lr, self.config.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["factor"]
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        means = dict(zip(tasks, by_task, strict=True))
        n_targets = {t: sum(len(r.target) for r in rows if r.task == t) for t in {r.task for r in rows}}
        return StepResult(
            loss=loss,
            by_task={t: means[t] / n for t, n in sorted(n_targets.items())},
            grad_norm=norm,
            lr=lr,
            n_tokens=sum(len(r) for r in rows),
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
                self.optimiser.state[parameter] = {
                    k: v.to(parameter.device) if v.dim() else v for k, v in entries.items()
                }
        if scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(scaler))

    def _gradients(self, number: int, rows: Sequence[Encoded], tasks: Sequence[str]) -> Tensor:
        """Gradients of this process's rows of the step: the loss, and the summed token loss of each task (float64)."""
        weighted = weigh(rows, self.config.loss, tasks)
        parts = partition_by_length([len(r) for r in rows], self.processes.world_size)
        mine = [weighted[i] for i in parts[self.processes.rank]]
        while True:
            try:
                return self._accumulate(number, mine, len(rows), len(tasks))
            except torch.OutOfMemoryError:
                self.optimiser.zero_grad(set_to_none=True)
            self._halve([len(w.row) for w in mine])

    def _accumulate(self, number: int, mine: Sequence[Weighted], n_rows: int, n_tasks: int) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        sums = torch.zeros(1 + n_tasks, dtype=torch.float64, device=self.device)
        for micro, positions in enumerate(self._split(mine)):
            torch.manual_seed(stable_seed("dropout", *self.stage.key, number, self.processes.rank, micro))
            batch = self.layout.collate([mine[i] for i in positions], self.loaded)
            # The route stays set until backward has ended: checkpointed layers run their forward again.
            with self.adapter.route(batch.routes):
                losses = token_losses(self.model, self.adapter, batch, self.stage.reads)
                loss = (losses * batch.weights).sum() + self.adapter.penalty() / n_rows
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            sums[0] += loss.detach()
            sums[1:].index_add_(0, batch.tasks, losses.detach().double())
        return sums

    def _split(self, mine: Sequence[Weighted]) -> list[list[int]]:
        return self.layout.split([len(w.row) for w in mine], self.micro_tokens)

    def _flag(self, stop: bool) -> Tensor:
        return torch.tensor([float(stop)], dtype=torch.float64, device=self.device)

    def _clip(self) -> Tensor:
        limit = self.config.clip if self.config.clip is not None else math.inf
        return nn.utils.clip_grad_norm_(list(self.stage.parameters.values()), limit).to(self.device)

    def _halve(self, lengths: Sequence[int]) -> None:
        used = max(sum(lengths[i] for i in part) for part in self.layout.split(lengths, self.micro_tokens))
        longest = max(lengths)
        if used <= longest:
            raise TrainingError(
                f"out of memory with a single row of {longest} tokens: set a smaller train.max_length, "
                "train.gradient_checkpointing=true, or use a smaller model"
            )
        self.micro_tokens = max(longest, min(self.micro_tokens, used) // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _check(self, loss: float, norm: float, number: int, rows: Sequence[Encoded]) -> None:
        # With fp16 the scaler leaves out a step whose gradient overflowed and goes on with a smaller scale.
        scaled = self.scaler.is_enabled() and self.scaler.get_scale() > _LEAST_SCALE
        if math.isfinite(loss) and (math.isfinite(norm) or scaled):
            return
        tasks = ", ".join(sorted({r.task for r in rows}))
        raise NotFinite(
            f"the loss is {loss} and the gradient norm {norm} at step {number + 1}; tasks of the batch: {tasks}. "
            "Nothing of this step was kept. Try a smaller train.lr, or train.precision=fp32"
        )
