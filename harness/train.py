"""The engine's Trainer: stages, checkpoints, resume."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from harness.batch import collate, split, token_losses
from harness.checkpoint import Checkpoint, Progress, load_newest, next_number, save_checkpoint
from harness.data import Mixture, StepPlan
from harness.encode import Encoder, draw
from harness.errors import TrainingError
from harness.interrupt import StopFlag
from harness.loop import Loop, Stage, StepResult, trainable_state
from harness.method import Adapter, Method, Trait
from harness.model import LoadedModel
from harness.record import TrainingSummary
from harness.reuse import find_stage
from harness.spec import TrainConfig
from harness.store import RunDirectory, append_lines, write_json
from harness.task import Example

_RECENT = 10


@dataclass(kw_only=True)
class EngineTrainer:
    """Implements ``harness.method.Trainer`` for one run.

    Every change of state goes through ``_checkpoint``, so that a process killed at any moment is continued by the next.
    """

    run: RunDirectory
    run_id: str
    config: TrainConfig
    method: Method
    adapter: Adapter
    loaded: LoadedModel
    encoder: Encoder
    mixture: Mixture
    tasks: Sequence[str]
    stop: StopFlag
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._progress = Progress()
        self._optimiser: Mapping[str, Tensor] = {}
        self._loop: Loop | None = None
        found = load_newest(self.run.checkpoints, self.run_id)
        if found is not None:
            _, checkpoint, damaged = found
            for line in damaged:
                self.say(line)
            self.adapter.load_state_dict(checkpoint.adapter)
            self._progress, self._optimiser = checkpoint.progress, checkpoint.optimiser
        self._cut_log()
        if self.config.gradient_checkpointing:
            self.loaded.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.loaded.model.enable_input_require_grads()

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
        plan = self.mixture.plan(tasks, share)
        loop = self._start(stage, plan, parameters, tasks)
        first = self._progress.step
        self.loaded.model.train()
        try:
            with tqdm(total=plan.steps, initial=first, desc=f"train {stage}", unit="step", disable=None) as bar:
                self._steps(stage, plan, loop, bar)
        finally:
            self.loaded.model.eval()
            self._loop = None
        self.finish(stage)

    def examples(self, task: str, n: int, stage: str) -> list[Example]:
        return draw(self.mixture.rows, task, n, self.seed, stage)

    @torch.no_grad()
    def loss(self, examples: Sequence[Example]) -> float:
        rows = self.encoder.rows(examples)
        index = {t: i for i, t in enumerate(self.tasks)}
        total = 0.0
        for positions in split(rows, self.config.micro_tokens):
            chosen = [rows[i] for i in positions]
            weights = [1.0 / len(r.target) for r in chosen]
            batch = collate(
                chosen,
                [index[r.task] for r in chosen],
                weights,
                self.loaded.device,
                self.loaded.encoder_decoder,
            )
            with self.adapter.route(batch.routes):
                losses = token_losses(self.loaded.model, batch)
            total += float((losses * batch.weights[:, None]).sum())
        return total / len(rows)

    def done(self, stage: str) -> bool:
        return stage in self._progress.finished

    def finish(self, stage: str) -> None:
        if not self.done(stage):
            self._progress.finished.append(stage)
        self._progress.stage, self._progress.step, self._optimiser = None, 0, {}
        self._checkpoint()
        self.stop.check()

    def remember(self, key: str, value: Any) -> None:
        self._progress.remembered[key] = value
        self._checkpoint()
        self.stop.check()

    def recall(self, key: str) -> Any:
        return self._progress.remembered.get(key)

    def reuse(self, stage: str) -> Mapping[str, Tensor] | None:
        spec = self.run.spec()
        found = None if spec is None else find_stage(self.run.path.parent, spec, self.method, stage)
        if found is None:
            return None
        self.say(f"stage {stage!r} is taken from {found.run}, which has trained it already")
        return found.state

    def artefact(self, name: str, value: Any) -> None:
        write_json(self.run.artefacts / f"{name}.json", value)

    def summary(self) -> TrainingSummary:
        """What the training has cost so far, over all its processes and restarts."""
        count = self._progress.counters
        recent = self._progress.recent_losses
        seconds = count.get("seconds", 0.0)
        cuda = self.loaded.device.type == "cuda"
        return TrainingSummary(
            steps=int(count.get("steps", 0)),
            examples=int(count.get("examples", 0)),
            target_tokens=int(count.get("target_tokens", 0)),
            tokens=int(count.get("tokens", 0)),
            seconds=seconds,
            tokens_per_second=count["tokens"] / seconds if seconds else None,
            peak_memory_bytes=int(torch.cuda.max_memory_allocated()) if cuda else None,
            final_loss=sum(recent) / len(recent) if recent else None,
            n_middle_cut=int(count.get("n_middle_cut", 0)),
        )

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
            reads=Trait.LABEL_FREE in self.method.traits,
            parameters={n: everything[n] for n in names},
            factors={n: self.method.lr_factor(n) for n in names},
        )
        loop = Loop(self.loaded, self.adapter, self.config, parts)
        if self._progress.stage == stage:
            loop.load_state(self._optimiser)
        else:
            self._progress.stage, self._progress.step = stage, 0
        self._loop = loop
        return loop

    def _steps(self, stage: str, plan: StepPlan, loop: Loop, bar: tqdm[Any]) -> None:
        saved_at = time.monotonic()
        while self._progress.step < plan.steps:
            number = self._progress.step
            rows = self.encoder.rows(self.mixture.rows.examples(plan.batch(number)))
            result = loop.step(number, rows, self.tasks)
            self._progress.step += 1
            self._count(result, len(rows), sum(r.cut for r in rows))
            self._log(stage, result)
            bar.update()
            bar.set_postfix(loss=f"{result.loss:.3f}", lr=f"{result.lr:.1e}", tok_s=f"{self._speed():.0f}")
            late = time.monotonic() - saved_at > 60 * self.config.checkpoint_minutes
            if self.stop or late or self._progress.step % self.config.checkpoint_steps == 0:
                self._checkpoint()
                saved_at = time.monotonic()
                self.stop.check()

    def _count(self, result: StepResult, n_rows: int, n_cut: int) -> None:
        added = {
            "steps": 1,
            "examples": n_rows,
            "tokens": result.n_tokens,
            "target_tokens": result.n_target_tokens,
            "seconds": result.seconds,
            "n_middle_cut": n_cut,
        }
        for key, value in added.items():
            self._progress.counters[key] = self._progress.counters.get(key, 0) + value
        self._progress.recent_losses = [*self._progress.recent_losses, result.loss][-_RECENT:]

    def _speed(self) -> float:
        return self._progress.counters["tokens"] / max(1e-9, self._progress.counters["seconds"])

    def _log(self, stage: str, result: StepResult) -> None:
        line = {
            "stage": stage,
            "step": self._progress.step,
            "loss": result.loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm if math.isfinite(result.grad_norm) else None,
            "tokens": result.n_tokens,
            "seconds": round(result.seconds, 4),
            "tasks": {t: round(v, 5) for t, v in result.by_task.items()},
        }
        append_lines(self.run.train_log, [json.dumps(line, ensure_ascii=False)])

    def _checkpoint(self) -> None:
        log = self.run.train_log
        self._progress.log_bytes = log.stat().st_size if log.exists() else 0
        state = Checkpoint(
            adapter=trainable_state(self.adapter.state_dict()),
            optimiser=trainable_state(self._loop.state() if self._loop and self._progress.stage else {}),
            progress=self._progress,
        )
        save_checkpoint(self.run.checkpoints, next_number(self.run.checkpoints), state, self.run_id)

    def _cut_log(self) -> None:
        # Steps after the checkpoint are made again, and logged again.
        if self.run.train_log.exists() and self.run.train_log.stat().st_size > self._progress.log_bytes:
            os.truncate(self.run.train_log, self._progress.log_bytes)
