"""One optimiser step after another: AdamW, warm-up, linear decay, clipping, micro-batches."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.batch import collate, loss_weights, split, token_losses, total_weight
from harness.data import stable_seed
from harness.encode import Encoded
from harness.errors import TrainingError
from harness.method import Adapter
from harness.model import LoadedModel
from harness.spec import TrainConfig


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step reports. loss: the weighted mean that was minimised; by_task: mean token loss per task."""

    loss: float
    by_task: Mapping[str, float]
    grad_norm: float
    lr: float
    n_tokens: int
    n_target_tokens: int
    seconds: float


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over ``warmup`` of the steps, then linear decay towards 0; step counts from 0."""
    warm = math.ceil(steps * warmup)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (steps - step) / max(1, steps - warm)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is trained: parameters by name, whose learning rates are multiplied by ``factors``.

    key: what dropout depends on, beside step and micro-batch (seed and tasks).
    reads: the adapter reads prompts to choose a route (trait LABEL_FREE).
    """

    name: str
    steps: int
    key: tuple[object, ...]
    reads: bool
    parameters: Mapping[str, nn.Parameter]
    factors: Mapping[str, float]


class Loop:
    """The optimiser of one stage and the model that it moves."""

    def __init__(self, loaded: LoadedModel, adapter: Adapter, config: TrainConfig, stage: Stage) -> None:
        self.adapter, self.config, self.stage = adapter, config, stage
        self.micro_tokens = config.micro_tokens
        self.seq2seq = loaded.encoder_decoder
        self.accelerator = Accelerator(
            cpu=loaded.device.type == "cpu",
            mixed_precision="fp16" if loaded.dtype == torch.float16 and loaded.device.type == "cuda" else "no",
        )
        groups = [{"params": [p], "factor": stage.factors[name]} for name, p in stage.parameters.items()]
        optimiser = torch.optim.AdamW(
            groups,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
        self.optimiser = self.accelerator.prepare_optimizer(optimiser)
        self.model = self.accelerator.prepare_model(loaded.model)
        self.device = loaded.device

    def step(self, number: int, rows: Sequence[Encoded], tasks: Sequence[str]) -> StepResult:
        """One optimiser step on ``rows``, halving the micro-batches after out-of-memory.

        Raises: TrainingError when the loss or the gradient is not finite; nothing has been changed then.
        """
        started = time.perf_counter()
        self.adapter.begin_step(self.stage.name, number)
        while True:
            try:
                loss, sums = self._gradients(number, rows, tasks)
                break
            except torch.OutOfMemoryError:
                self._halve(rows)
        norm = self._clip()
        lr = learning_rate(number, self.stage.steps, self.config.lr, self.config.warmup)
        self._check(loss, norm, number, rows)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        n_targets = {t: sum(len(r.target) for r in rows if r.task == t) for t in {r.task for r in rows}}
        return StepResult(
            loss=loss,
            by_task={t: sums[t] / n for t, n in sorted(n_targets.items())},
            grad_norm=norm,
            lr=lr,
            n_tokens=sum(len(r) for r in rows),
            n_target_tokens=sum(n_targets.values()),
            seconds=time.perf_counter() - started,
        )

    def state(self) -> dict[str, Tensor]:
        """The optimiser's state by ``<parameter>/<key>``."""
        state = self.optimiser.state
        return {f"{n}/{k}": v for n, p in self.stage.parameters.items() for k, v in state.get(p, {}).items()}

    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """The inverse of ``state``."""
        for name, parameter in self.stage.parameters.items():
            entries = {k.rsplit("/", 1)[1]: v for k, v in saved.items() if k.rsplit("/", 1)[0] == name}
            if entries:
                self.optimiser.state[parameter] = {
                    k: v.to(parameter.device) if v.dim() else v for k, v in entries.items()
                }

    def _gradients(self, number: int, rows: Sequence[Encoded], tasks: Sequence[str]) -> tuple[float, dict[str, float]]:
        """Accumulate gradients of the whole step; the loss and the summed token loss of each task."""
        self.optimiser.zero_grad(set_to_none=True)
        weights = loss_weights(rows, self.config.loss)
        total = total_weight(rows, weights)
        index = {t: i for i, t in enumerate(tasks)}
        by_task = torch.zeros(len(tasks), dtype=torch.float64, device=self.device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for micro, positions in enumerate(split(rows, self.micro_tokens)):
            torch.manual_seed(stable_seed("dropout", *self.stage.key, number, micro))
            chosen = [rows[i] for i in positions]
            batch = collate(
                chosen, [index[r.task] for r in chosen], [weights[i] for i in positions], self.device, self.seq2seq
            )
            # The route stays set until backward has ended: checkpointed layers run their forward again.
            with self.adapter.route(batch.routes):
                if self.stage.reads:
                    prompts = [torch.tensor(r.prompt, device=self.device) for r in chosen]
                    self.adapter.read(prompts, torch.arange(len(chosen), device=self.device))
                losses = token_losses(self.model, batch)
                loss = (losses * batch.weights[:, None]).sum() / total + self.adapter.penalty() / len(rows)
                self.accelerator.backward(loss)
            loss_sum += loss.detach()
            by_task.index_add_(0, batch.routes, losses.detach().sum(1).double())
        host = torch.cat([loss_sum[None], by_task]).tolist()
        return host[0], dict(zip(tasks, host[1:], strict=True))

    def _clip(self) -> float:
        limit = self.config.clip if self.config.clip is not None else math.inf
        return float(self.accelerator.clip_grad_norm_(list(self.stage.parameters.values()), limit))

    def _halve(self, rows: Sequence[Encoded]) -> None:
        longest = max(len(r) for r in rows)
        if self.micro_tokens <= longest:
            raise TrainingError(
                f"out of memory with a single row of {longest} tokens: set a smaller train.max_length, "
                "train.gradient_checkpointing=true, or use a smaller model"
            )
        self.micro_tokens = max(longest, self.micro_tokens // 2)
        torch.cuda.empty_cache()

    def _check(self, loss: float, norm: float, number: int, rows: Sequence[Encoded]) -> None:
        # With fp16 the scaler skips a step whose gradient overflowed and goes on with a smaller scale.
        scaled = self.accelerator.scaler is not None
        if not math.isfinite(loss) or not (math.isfinite(norm) or scaled):
            tasks = ", ".join(sorted({r.task for r in rows}))
            raise TrainingError(
                f"the loss is {loss} and the gradient norm {norm} at step {number + 1}; tasks of the batch: {tasks}. "
                "Try a smaller train.lr, or train.precision=fp32"
            )


def trainable_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict on the CPU, ready to be saved."""
    return {k: v.detach().to("cpu") for k, v in state.items()}
