"""The engine's Trainer: stages, checkpoints, resume."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded, Encoder, draw
from harness.data.mixture import Mixture, StepPlan
from harness.errors import NotFinite, TrainingError
from harness.method import Adapter, AdapterMethod, ArtefactKind, Start, Trait
from harness.models.loading import LoadedModel
from harness.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from harness.runtime.memory import peak_bytes, reset_peak
from harness.runtime.prefetch import Prefetcher
from harness.runtime.progress_bar import ProgressBar
from harness.runtime.signals import Interrupted, StopFlag
from harness.store.adapter import trainable_state
from harness.store.artefacts import write_artefact
from harness.store.files import append_lines
from harness.store.record import TrainingSummary
from harness.store.run_directory import RunDirectory
from harness.task import Example
from harness.training.attention import attention, checkpoint_activations
from harness.training.batch import token_losses, weigh
from harness.training.checkpoint import Checkpoint, Owner, load_newest, save_checkpoint
from harness.training.packing import Layout, choose_layout, micro_tokens
from harness.training.progress import Progress, count, count_peak, log_line, speed, summary
from harness.training.reuse import find_stage
from harness.training.step import Loop, Stage, StepResult

LOG: Final = logging.getLogger(__name__)

Look = Callable[[Sequence[str]], float | None]


@dataclass(kw_only=True)
class EngineTrainer:
    """Implements ``harness.method.Trainer`` for one run.

    Every change of state goes through ``_checkpoint``, so that a process killed at any moment is continued by the next.
    With several processes each runs this same code; only the first one writes.

    look: the score of the adapter on dev rows of the given tasks, None where they have none (``train.eval_every``).
    memory_before: bytes that the process had in memory before the model was loaded, for the peak on a CPU.
    """

    run: RunDirectory
    run_id: str
    config: TrainConfig
    method: AdapterMethod
    adapter: Adapter
    loaded: LoadedModel
    encoder: Encoder
    mixture: Mixture
    tasks: Sequence[str]
    stop: StopFlag
    look: Look | None = None
    memory_before: int | None = None
    processes: ProcessGroup = SINGLE_PROCESS
    start: Start | None = None

    def __post_init__(self) -> None:
        self._progress = Progress()
        self._optimiser: Mapping[str, Tensor] = {}
        self._best: Mapping[str, Tensor] = {}
        self._loop: Loop | None = None
        self._layout: Layout | None = None
        self._last_good: Path | None = None
        self._owner = Owner(run_id=self.run_id, spec=_read_spec(self.run))
        found = self.processes.broadcast(
            load_newest(self.run.checkpoints, self._owner) if self.processes.is_main else None
        )
        assert found is not None
        for line in found.damaged:
            self._warn(line)
        self._last_good = found.path
        if found.checkpoint is not None:
            self.adapter.load_state_dict(found.checkpoint.adapter)
            self._progress, self._optimiser = found.checkpoint.progress, found.checkpoint.optimiser
            self._best = found.checkpoint.best
        self._cut_log()
        reset_peak()

    @property
    def seed(self) -> int:
        return self.mixture.seed

    def train(
        self,
        stage: str,
        parameters: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        share: float = 1.0,
    ) -> None:
        if self.done(stage):
            return
        plan = self.mixture.plan(tasks or self.tasks, share)
        loop = self._start(stage, plan, parameters, tasks)
        with (
            Prefetcher(lambda step: self._rows(plan, step), self._progress.step, plan.steps) as ahead,
            ProgressBar(f"train {stage}", plan.steps, self._progress.step, quiet=not self.processes.is_main) as watch,
        ):
            try:
                self._steps(_Running(loop=loop, plan=plan, ahead=ahead, watch=watch, tasks=tasks or self.tasks))
            finally:
                self._loop = None
        if self._best:
            self.adapter.load_state_dict({**self.adapter.state_dict(), **self._best})
        self.finish(stage)

    def examples(self, task: str, n: int, stage: str) -> list[Example]:
        return draw(self.mixture.rows, task, n, self.seed, stage)

    @torch.no_grad()
    def loss(self, examples: Sequence[Example]) -> float:
        rows = weigh(self.encoder.rows(examples), "example", self.tasks)
        layout = self._laid_out()
        total = 0.0
        # The first process's numbers are everyone's: a search must not take two ways.
        parts = layout.split([len(w.row) for w in rows], micro_tokens(self.config, self.loaded.device))
        with attention(self.loaded.model, layout.attention):
            for positions in parts if self.processes.is_main else []:
                batch = layout.collate([rows[i] for i in positions], self.loaded)
                with self.adapter.route(batch.routes):
                    losses = token_losses(self.loaded.model, self.adapter, batch, reads=False)
                total += float((losses * batch.weights).sum())
        return self.processes.broadcast(total)

    def done(self, stage: str) -> bool:
        return stage in self._progress.finished

    def finish(self, stage: str) -> None:
        if not self.done(stage):
            self._progress.finished.append(stage)
        self._progress.stage, self._progress.step, self._progress.looks = None, 0, []
        self._progress.scaler, self._optimiser, self._best = {}, {}, {}
        self._checkpoint()
        self._stop_here()

    def remember(self, key: str, value: Any) -> None:
        self._progress.remembered[key] = value
        self._checkpoint()
        self._stop_here()

    def recall(self, key: str) -> Any:
        return self._progress.remembered.get(key)

    def reuse(self, stage: str) -> Mapping[str, Tensor] | None:
        spec = self.run.spec() if self.processes.is_main else None
        found = find_stage(self.run.path.parent, spec, self.method, stage) if spec is not None else None
        if found is not None:
            LOG.info("stage %r is reused from %s, which has trained it already", stage, found.run)
        return self.processes.broadcast(None if found is None else found.state)

    def artefact(self, name: str, value: Any, kind: ArtefactKind) -> None:
        if self.processes.is_main:
            write_artefact(self.run.artefacts, name, value, kind)

    def summary(self, memory_estimate: int | None = None) -> TrainingSummary:
        """What the training has cost so far, over all its processes and restarts."""
        self._measure()
        packed = self._laid_out().packed if self._progress.counters.get("steps") else None
        return summary(self._progress, memory_estimate, self._micro_tokens(), packed)

    def where(self) -> str:
        """The stage and step at hand, for failure.json."""
        return f"stage {self._progress.stage}, step {self._progress.step + 1}"

    def _start(self, stage: str, plan: StepPlan, parameters: Sequence[str] | None, tasks: Sequence[str] | None) -> Loop:
        everything = self.adapter.trainable()
        names = list(everything) if parameters is None else list(parameters)
        if not names:
            raise TrainingError(f"stage {stage!r} has no parameters to train")
        for name, parameter in everything.items():
            parameter.requires_grad_(name in set(names))
        parts = Stage(
            name=stage,
            steps=plan.steps,
            key=(self.seed, *(self.tasks if tasks is None else tasks)),
            reads=self._reads,
            parameters={n: everything[n] for n in names},
            factors={n: self.method.lr_factor(n) for n in names},
        )
        loop = Loop(self.loaded, self.adapter, self.config, parts, self._laid_out(), self.processes)
        loop.micro_tokens = self._micro_tokens()
        if self._progress.stage == stage:
            loop.load_state(self._optimiser, self._progress.scaler)
        else:
            self._progress.stage, self._progress.step, self._progress.looks = stage, 0, []
            self._best = {}
        self._loop = loop
        return loop

    @property
    def _reads(self) -> bool:
        return Trait.LABEL_FREE in self.method.traits

    def _laid_out(self) -> Layout:
        if self._layout is None:
            self._layout = choose_layout(self.loaded, self.adapter, self.config, self._reads)
        return self._layout

    def _micro_tokens(self) -> int:
        told = micro_tokens(self.config, self.loaded.device)
        return min(told, self._progress.micro_tokens or told)

    def _rows(self, plan: StepPlan, step: int) -> list[Encoded]:
        return self.encoder.rows(self.mixture.rows.examples(plan.batch(step)))

    def _steps(self, at: _Running) -> None:
        saved_at = time.monotonic()
        with ExitStack() as training:
            training.enter_context(self._training(at.loop.layout))
            while self._progress.step < at.plan.steps and not self._patience_is_over():
                result = self._step(at)
                if self._is_due(at.plan):
                    training.close()  # texts are generated by the model as it is evaluated
                    self._look(at)
                    training.enter_context(self._training(at.loop.layout))
                late = time.monotonic() - saved_at > 60 * self.config.checkpoint_minutes
                if result.stop or late or self._progress.step % self.config.checkpoint_steps == 0:
                    self._checkpoint()
                    saved_at = time.monotonic()
                if result.stop:
                    raise Interrupted(self.stop.signum or signal.SIGTERM)

    def _step(self, at: _Running) -> StepResult:
        rows = at.ahead.get()
        micro = at.loop.micro_tokens
        try:
            result = at.loop.step(self._progress.step, rows, self.tasks, stop=bool(self.stop))
        except NotFinite as error:
            raise NotFinite(f"{error}. The last good checkpoint: {self._last_good or 'none yet'}") from error
        if at.loop.micro_tokens < micro:
            self._progress.micro_tokens = at.loop.micro_tokens
            self._warn(
                f"out of memory: the micro-batch is reduced to {at.loop.micro_tokens} tokens (results are not affected)"
            )
        self._progress.step += 1
        count(self._progress, result, rows, at.ahead.waited_seconds)
        self._append(log_line(at.loop.stage.name, self._progress.step, result))
        at.watch.update(result.loss, result.lr, speed(self._progress))
        return result

    @contextmanager
    def _training(self, layout: Layout) -> Iterator[None]:
        """The model in training mode; as it was before, without any hook, when the context ends."""
        model = self.loaded.model
        with attention(model, layout.attention):
            if self.config.gradient_checkpointing:
                checkpoint_activations(model, True)
            model.train()
            try:
                yield
            finally:
                model.eval()
                if self.config.gradient_checkpointing:
                    checkpoint_activations(model, False)

    # The best adapter by dev

    def _is_due(self, plan: StepPlan) -> bool:
        every, step = self.config.eval_every, self._progress.step
        return every is not None and self.look is not None and (step % every == 0 or step == plan.steps)

    def _look(self, at: _Running) -> None:
        """Score the adapter on dev; of equals the earlier one stays the best."""
        assert self.look is not None
        at.ahead.wait_until_idle()
        score = self.processes.broadcast(self.look(at.tasks) if self.processes.is_main else None)
        if score is None:
            return
        looks = self._progress.looks
        if not looks or score > max(s for _, s in looks):
            names = set(at.loop.stage.parameters)
            self._best = {n: t for n, t in trainable_state(self.adapter.state_dict()).items() if n in names}
        looks.append((self._progress.step, score))
        self._append({"stage": at.loop.stage.name, "step": self._progress.step, "dev": score})

    def _patience_is_over(self) -> bool:
        scores = [score for _, score in self._progress.looks]
        if self.config.patience is None or not scores:
            return False
        return len(scores) - 1 - scores.index(max(scores)) >= self.config.patience

    # What is kept

    def _measure(self) -> None:
        count_peak(self._progress, peak_bytes(self.loaded.device, self.memory_before))

    def _append(self, line: Mapping[str, Any]) -> None:
        if self.processes.is_main:
            append_lines(self.run.train_log, [json.dumps(line, ensure_ascii=False)])

    def _checkpoint(self) -> None:
        if not self.processes.is_main:
            return
        log = self.run.train_log
        self._progress.log_bytes = log.stat().st_size if log.exists() else 0
        running = self._loop if self._progress.stage else None
        if running is not None:
            self._progress.scaler = dict(running.scaler.state_dict())
        self._measure()
        state = Checkpoint(
            adapter=trainable_state(self.adapter.state_dict()),
            optimiser=trainable_state(running.state() if running else {}),
            best=self._best,
            progress=self._progress,
        )
        self._last_good = save_checkpoint(self.run.checkpoints, state, self._owner)

    def _stop_here(self) -> None:
        # Several processes stop together or not at all: after a step, or when training has ended.
        if self.processes.world_size == 1:
            self.stop.check()

    def _cut_log(self) -> None:
        # Steps after the checkpoint are made again, and logged again.
        log = self.run.train_log
        if self.processes.is_main and log.exists() and log.stat().st_size > self._progress.log_bytes:
            os.truncate(log, self._progress.log_bytes)

    def _warn(self, line: str) -> None:
        if self.processes.is_main:
            LOG.warning(line)


@dataclass(frozen=True, kw_only=True)
class _Running:
    """A stage at work. tasks: whose rows it sees."""

    loop: Loop
    plan: StepPlan
    ahead: Prefetcher[list[Encoded]]
    watch: ProgressBar
    tasks: Sequence[str]


def _read_spec(run: RunDirectory) -> dict[str, Any]:
    path = run.path / "spec.json"
    spec: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return spec
