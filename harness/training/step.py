"""Optimiser steps of a stage: AdamW, warm-up, linear decay, clipping, gradient accumulation over micro-batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.balancing import BalancedStep
from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.errors import NotFinite
from harness.method import Adapter
from harness.models.loading import LoadedModel
from harness.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from harness.seeding import stable_seed
from harness.training.batch import (
    Weighted,
    announce,
    batch_logits,
    cross_entropies,
    reweigh,
    sum_by_task,
    task_shares,
    token_losses,
    weigh,
)
from harness.training.compiled_blocks import CompiledBlocks
from harness.training.division import MicroBatch, StepBatches, StepDivision
from harness.training.frozen_blocks import FrozenBlocks
from harness.training.optimiser import TaskAdamW, TrainedParameter
from harness.training.packing import TOLERANCE, Layout
from harness.training.task_balance import Balancing, CombinedGradients, LossPasses, StageBalance, by_name
from harness.training.task_gradients import TaskGradients, TaskGradientSums

# Below this scale of fp16 losses an overflow of the gradient means divergence, not a wrong scale.
_LEAST_SCALE = 2.0**-10


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The statistics of one step, over all processes.

    loss: the weighted mean that was minimised. by_task: the mean token loss of each task of the step.
    n_tokens: of prompts and targets. stop: at least one process got a signal to stop.
    weights: the factor of ``train.balance`` on the loss of each task of the step; None without weights.
    """

    loss: float
    by_task: Mapping[str, float]
    grad_norm: float
    lr: float
    n_tokens: int
    n_target_tokens: int
    seconds: float
    stop: bool = False
    weights: Mapping[str, float] | None = None


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
    balance: the weights of the tasks of each step; None for what ``train.loss`` gives.
    combined: combines the gradients of the tasks of each step; None for their sum.
    """

    name: str
    steps: int
    key: tuple[object, ...]
    reads: bool
    trained: Mapping[str, TrainedParameter]
    balance: StageBalance | None = None
    combined: CombinedGradients | None = None

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The parameters themselves."""
        return {name: trained.parameter for name, trained in self.trained.items()}


UseTaskGradients = Callable[[TaskGradients], None]


class StepRunner:
    """Performs the optimiser steps of one stage.

    division: of steps into micro-batches, which are halved when the device runs out of memory.
    frozen: the blocks whose hidden states are on disk (``train.cache_frozen``); None computes every block.
    compiled: the blocks as graphs (``train.compile``); None computes them without.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        adapter: Adapter,
        config: TrainConfig,
        stage: Stage,
        layout: Layout,
        processes: ProcessGroup = SINGLE_PROCESS,
        frozen: FrozenBlocks | None = None,
        compiled: CompiledBlocks | None = None,
    ) -> None:
        self.loaded, self.adapter, self.config, self.stage = loaded, adapter, config, stage
        self.processes = processes
        self.division = StepDivision(loaded, config, layout, processes)
        self.device = loaded.device
        self.model = loaded.model
        # Scales losses so that small gradients do not underflow in fp16; without effect in other precisions.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=loaded.dtype == torch.float16)
        self.optimiser = TaskAdamW(stage.trained.values(), config)
        self.frozen, self._checked, self.compiled = frozen, False, compiled
        self._sums: TaskGradientSums | None = None

    def ahead(self, sequences: Sequence[Encoded], routes: Routes) -> StepBatches | None:
        """This process's micro-batches of a step; None if they depend on the step itself, as with a balancer.

        It can be called before the step, from another thread.
        """
        if self.stage.balance is not None:
            return None
        return self.division.of_step(weigh(sequences, self.config.loss, routes))

    def step(
        self,
        number: int,
        sequences: Sequence[Encoded],
        routes: Routes,
        stop: bool = False,
        use: UseTaskGradients | None = None,
        ahead: StepBatches | None = None,
    ) -> StepResult:
        """Perform one optimiser step on ``sequences``, of which each process gets its share.

        If memory runs out, the micro-batches are halved and the step is repeated; its result is the same.

        Args:
            number: counts from 0.
            sequences: those of the whole step, the same in every process.
            routes: the tasks that the adapter was attached for.
            stop: this process got a signal to stop.
            use: called with the gradients of single tasks, before the gradient is clipped and the weights change; in
                every process. A function that only reads them leaves the step as it is, bit for bit.
            ahead: the micro-batches that ``ahead`` made of the same sequences.

        Raises: NotFinite if the loss or the gradient is not finite; TrainingError if one sequence is too long.
        """
        started = time.perf_counter()
        self.adapter.begin_step(self.stage.name, number)
        lr, weighted = self.lr(number), weigh(sequences, self.config.loss, routes)
        balancing = self._begin_balancing(number, sequences, routes)
        if balancing is not None:
            weighted = reweigh(weighted, {routes.index(task): w for task, w in balancing.weights.items()})
        task_sums = self._task_sums(len(routes), use)
        sums = torch.cat([self._gradients(number, weighted, len(routes), task_sums, ahead), self._flag(stop)])
        self.processes.all_reduce(sums)
        self.processes.all_reduce_gradients(self.stage.parameters.values())
        scale = self.scaler.get_scale()
        self.scaler.unscale_(self.optimiser)
        if task_sums is not None:
            self._use(task_sums.finish(weighted, scale, self.processes), number, use)
        norm = self._clip()
        loss, *of_tasks, stopped, norm = torch.cat([sums, norm.double()[None]]).tolist()
        self._check(loss, norm, number, sequences)
        self.optimiser.set_lr(lr)
        self.optimiser.present = frozenset(routes.index(s.task) for s in sequences)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if balancing is not None:
            balancing.end(by_name(of_tasks[len(routes) :], task_shares(weighted, len(routes)), routes))
        n_targets = [float(sum(len(s.target) for s in sequences if s.task == task)) for task in routes.tasks]
        return StepResult(
            loss=loss,
            by_task=dict(sorted(by_name(of_tasks[: len(routes)], n_targets, routes).items())),
            grad_norm=norm,
            lr=lr,
            n_tokens=sum(map(len, sequences)),
            n_target_tokens=sum(len(s.target) for s in sequences),
            seconds=time.perf_counter() - started,
            stop=bool(stopped),
            weights=None if balancing is None else balancing.weights,
        )

    def lr(self, number: int) -> float:
        """The learning rate of a step, before the factors of parameters."""
        return learning_rate(number, self.stage.steps, self.config.lr, self.config.warmup)

    def group_of(self, parameter: nn.Parameter) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        """The optimiser's group and state of a parameter of the stage."""
        group = next(g for g in self.optimiser.param_groups if any(p is parameter for p in g["params"]))
        return group, self.optimiser.state.get(parameter, {})

    @torch.no_grad()
    def losses(self, number: int, sequences: Sequence[Encoded], routes: Routes) -> Tensor:
        """The mean loss of each task on the sequences of a step, with the present weights and the step's dropout.

        Returns: (T,) float64 on the CPU, weighted as ``train.loss`` says, over all processes; NaN without examples.
        """
        weighted = weigh(sequences, self.config.loss, routes)
        mine = self.division.share_of(weighted)

        def attempt() -> Tensor:
            sums = torch.zeros(len(routes), dtype=torch.float64, device=self.device)
            for micro, made in enumerate(self.division.batches(mine).batches):
                self._seed(number, micro)
                with self.adapter.route(made.batch.routes, made.batch.examples):
                    losses = token_losses(self.model, self.adapter, made.batch, self.stage.reads)
                sums += sum_by_task(losses.double() * made.batch.weights, made.batch, len(routes))
            return sums

        with self.loaded.together():
            own = self.division.within_memory(mine, attempt)
        sums = self.processes.all_reduce(own).cpu()
        return sums / torch.tensor(task_shares(weighted, len(routes)), dtype=torch.float64)

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """The contexts of a checkpointed block's forward, inside which it is called, and of its repetition."""
        observer = None if self._sums is None else self._sums.observer
        return nullcontext(), nullcontext() if observer is None else observer

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

    def _begin_balancing(self, number: int, sequences: Sequence[Encoded], routes: Routes) -> Balancing | None:
        """The weights of the tasks of this step; None without a balancer."""
        balance = self.stage.balance
        if balance is None:
            return None
        present = {s.task for s in sequences}
        step = BalancedStep(
            number=number,
            tasks=tuple(task for task in routes.tasks if task in present),
            lr=self.lr(number),
            losses=LossPasses(runner=self, number=number, sequences=sequences, dev=balance.dev, routes=routes),
        )
        return Balancing.begin(balance.weights, step)

    def _use(self, gradients: TaskGradients, number: int, use: UseTaskGradients | None) -> None:
        if use is not None:
            use(gradients)
        if self.stage.combined is not None:
            self.stage.combined.replace(gradients, number)

    def _task_sums(self, n_tasks: int, use: UseTaskGradients | None) -> TaskGradientSums | None:
        """What adds up the gradients of single tasks; None if nothing asks for them."""
        if use is None and self.stage.combined is None:
            return None
        if self._sums is None:
            # Compiled blocks make their products where they cannot be observed.
            observes = self.compiled is None
            self._sums = TaskGradientSums(self.adapter, self.stage.trained, n_tasks, observes)
        return self._sums

    def _gradients(
        self,
        number: int,
        weighted: Sequence[Weighted],
        n_tasks: int,
        task_sums: TaskGradientSums | None,
        ahead: StepBatches | None,
    ) -> Tensor:
        """Compute the gradients of this process's share of the step, and those of its tasks where they are asked for.

        Returns: (1 + 2 tasks,) float64, its share of the loss, then for each task the sum of its token losses, then for
            each task its share of the loss.
        """
        mine = self.division.share_of(weighted)

        def attempt() -> Tensor:
            fits = ahead is not None and ahead.micro_tokens == self.division.micro_tokens
            made = ahead if ahead is not None and fits else self.division.of_step(weighted)
            sums = self._accumulate(number, made.batches, len(weighted), n_tasks, task_sums)
            if task_sums is not None and not task_sums.complete:
                self._accumulate_alone(number, mine, task_sums)
            return sums

        work = attempt if self.compiled is None else partial(self.compiled.attempt, attempt)
        return self.division.within_memory(mine, work)

    def _accumulate(
        self,
        number: int,
        batches: Sequence[MicroBatch],
        n_sequences: int,
        n_tasks: int,
        task_sums: TaskGradientSums | None,
    ) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        if task_sums is not None:
            task_sums.begin()
        sums = torch.zeros(1 + 2 * n_tasks, dtype=torch.float64, device=self.device)
        for micro, made in enumerate(batches):
            self._seed(number, micro)
            batch = made.batch
            observed = nullcontext() if task_sums is None else task_sums.observe(batch)
            # The route stays set until backward has ended, because checkpointed layers repeat their forward there.
            with observed, self.adapter.route(batch.routes, batch.examples), ExitStack() as forward:
                announce(self.model, self.adapter, batch, self.stage.reads)
                forward.enter_context(self._without_frozen(made))
                forward.enter_context(self._compiled())
                losses = cross_entropies(batch_logits(self.model, batch), batch)
                of_tasks, penalty = (losses * batch.weights).sum(), self.adapter.penalty()
                loss = of_tasks + penalty / n_sequences
                if task_sums is not None and penalty.requires_grad:
                    task_sums.backward_before(self.scaler.scale(of_tasks))
                self.loaded.before_backward()
                self.scaler.scale(0 * loss if made.is_filling else loss).backward()  # type: ignore[no-untyped-call]
            if made.is_filling:
                continue
            sums[0] += loss.detach()
            of_labels = losses.detach().double()
            of_labels = torch.stack([of_labels, of_labels * batch.weights], dim=1)
            sums[1:] += sum_by_task(of_labels, batch, n_tasks).t().flatten()
            if task_sums is not None:
                task_sums.add_losses(batch, losses.detach())
        return sums

    def _accumulate_alone(self, number: int, mine: Sequence[Weighted], task_sums: TaskGradientSums) -> None:
        """The tasks' gradients by a pass of their own, in micro-batches of one task each."""
        task_sums.begin_alone()
        micro = 0
        for task in sorted({w.task for w in mine}):
            for made in self.division.batches([w for w in mine if w.task == task]).batches:
                self._seed(number, micro)
                micro += 1
                with self.adapter.route(made.batch.routes, made.batch.examples):
                    announce(self.model, self.adapter, made.batch, self.stage.reads)
                    with self._compiled():
                        losses = cross_entropies(batch_logits(self.model, made.batch), made.batch)
                        task_sums.add_alone(self.scaler.scale((losses * made.batch.weights).sum()), task)

    def _without_frozen(self, made: MicroBatch) -> AbstractContextManager[None]:
        """The context of a forward that takes the hidden states of the frozen blocks from disk."""
        if self.frozen is None:
            return nullcontext()
        parts = self.division.split(made.sequences)
        states = self.frozen.states(made.sequences, parts, self.division.collate)
        if not self._checked:
            self.frozen.check(made.batch, states, TOLERANCE[self.loaded.dtype])
            self._checked = True
        return self.frozen.replay(made.batch, states)

    def _compiled(self) -> AbstractContextManager[None]:
        """The context of a forward and backward pass of compiled blocks."""
        return nullcontext() if self.compiled is None else self.compiled.in_use()

    def _seed(self, number: int, micro: int) -> None:
        torch.manual_seed(stable_seed("dropout", *self.stage.key, number, self.processes.rank, micro))

    def _flag(self, stop: bool) -> Tensor:
        return torch.full((1,), float(stop), dtype=torch.float64, device=self.device)

    def _clip(self) -> Tensor:
        limit = self.config.clip if self.config.clip is not None else math.inf
        return nn.utils.clip_grad_norm_(list(self.stage.parameters.values()), limit).to(self.device)

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
