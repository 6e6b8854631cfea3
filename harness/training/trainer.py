"""The engine's Trainer: what a method calls to train its adapter, stage by stage, with checkpoints and resume."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from harness.balancing import BalancedStage
from harness.data.encoding import draw
from harness.data.mixture import Mixture, StepPlan
from harness.errors import TrainingError
from harness.method import ArtefactKind, Start, Trait
from harness.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from harness.runtime.memory import peak_bytes, reset_peak
from harness.runtime.signals import StopFlag
from harness.store.adapter import trainable_state
from harness.store.affinity import ARTEFACT
from harness.store.artefacts import write_artefact
from harness.store.record import TrainingSummary
from harness.store.run_directory import RunDirectory
from harness.task import Example
from harness.training.affinity import GRADIENTS, LOOKAHEAD, AffinitySums
from harness.training.attention import attention
from harness.training.batch import token_losses, weigh
from harness.training.checkpoint import Checkpoint, CheckpointManager, CheckpointOwner
from harness.training.compiled_blocks import CompiledBlocks
from harness.training.early_stopping import EarlyStopping, EvaluateOnDev
from harness.training.frozen_blocks import FrozenBlocks, frozen_blocks
from harness.training.optimiser import trained_parameters
from harness.training.packing import Layout, choose_layout, micro_tokens
from harness.training.progress import Progress
from harness.training.reuse import find_stage
from harness.training.stage import StageRunner, StepHook, TrainingSetup, TrainingState
from harness.training.step import Stage, StepRunner
from harness.training.train_log import TrainLog

LOG: Final = logging.getLogger(__name__)


@dataclass(kw_only=True)
class EngineTrainer:
    """Implements ``harness.method.Trainer`` for one run. Call ``restore`` once before anything else.

    Every change of state is in a checkpoint before the method sees its effect, so that a process that is killed at any
    moment is resumed by the next one. With several processes each runs this same code; only rank 0 writes files.

    evaluate: the score of the adapter on dev (``train.eval_every``); None if dev is not evaluated.
    start: the finished run that this one is initialised from. on_step: called after each step, for example by tests.
    """

    run: RunDirectory
    run_id: str
    setup: TrainingSetup
    stop: StopFlag
    evaluate: EvaluateOnDev | None = None
    processes: ProcessGroup = SINGLE_PROCESS
    start: Start | None = None
    on_step: StepHook | None = None

    def __post_init__(self) -> None:
        config = self.setup.config
        owner = CheckpointOwner(run_id=self.run_id, spec=_read_spec(self.run))
        self._state = TrainingState(
            progress=Progress(),
            log=TrainLog(path=self.run.train_log, processes=self.processes),
            checkpoints=CheckpointManager(self.run.checkpoints, owner, self.processes),
            early_stopping=EarlyStopping(evaluate=self.evaluate, every=config.eval_every, patience=config.patience),
            stop=self.stop,
            processes=self.processes,
            part=self.run.part,
            on_step=self.on_step,
            affinity=self._no_affinity(),
        )
        self._optimiser: Mapping[str, Tensor] = {}  # The checkpoint's optimiser state for the unfinished stage.
        self._steps: StepRunner | None = None  # The steps of the current stage.
        self._layout: Layout | None = None
        # All stages share the graphs, and one notice if there are too many of them.
        self._compiled = _compiled_blocks(self.setup)

    def restore(self) -> None:
        """Continue from the run's newest checkpoint, where it has one, and start measuring the peak of memory.

        Raises: StoreError if the checkpoint belongs to another run.
        """
        checkpoint = self._state.checkpoints.restore()
        progress = Progress() if checkpoint is None else checkpoint.progress
        if checkpoint is not None:
            self.setup.adapter.load_state_dict(checkpoint.adapter)
            self._optimiser = checkpoint.optimiser
            early_stopping = self._state.early_stopping
            early_stopping.scores, early_stopping.best = progress.dev_scores, checkpoint.best
            self._state = dataclasses.replace(
                self._state, progress=progress, affinity=self._restored_affinity(progress.affinity)
            )
        self._state.log.truncate(progress.log_bytes)
        reset_peak()

    @property
    def seed(self) -> int:
        return self.mixture.seed

    @property
    def mixture(self) -> Mixture:
        return self.setup.mixture

    def train(
        self,
        stage: str,
        parameters: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        share: float = 1.0,
    ) -> None:
        if self.done(stage):
            return
        plan = self.mixture.plan(tasks or self.setup.routes.tasks, share)
        self._steps = self._begin(stage, plan, parameters, tasks)
        runner = StageRunner(
            setup=self.setup,
            state=self._state,
            plan=plan,
            steps=self._steps,
            tasks=tasks or self.setup.routes.tasks,
            save=self._save,
        )
        try:
            runner.run()
        finally:
            self._steps = None
        if best := self._state.early_stopping.best:
            self.setup.adapter.load_state_dict({**self.setup.adapter.state_dict(), **best})
        self.finish(stage)

    def examples(self, task: str, n: int, stage: str) -> list[Example]:
        return draw(self.mixture.examples, task, n, self.seed, stage)

    @torch.no_grad()
    def loss(self, examples: Sequence[Example]) -> float:
        loaded, adapter = self.setup.loaded, self.setup.adapter
        weighted = weigh(self.setup.encoder.encode(examples), "example", self.setup.routes)
        layout, started = self._choose_layout(), time.perf_counter()
        parts = layout.split([len(w.sequence) for w in weighted], micro_tokens(self.setup.config, loaded.device))
        total = 0.0
        with attention(loaded.model, layout.attention), loaded.together():
            for positions in parts if self.processes.is_main else []:
                batch = layout.collate([weighted[i] for i in positions], loaded)
                with adapter.route(batch.routes, batch.examples):
                    losses = token_losses(loaded.model, adapter, batch, reads=False)
                total += float((losses * batch.weights).sum())
        self._state.progress.count_search(time.perf_counter() - started)
        # Rank 0's loss is broadcast, so that all ranks take the same step of a search.
        return self.processes.broadcast(total)

    def done(self, stage: str) -> bool:
        return stage in self._state.progress.finished

    def finish(self, stage: str) -> None:
        affinity = self._state.affinity
        if affinity is not None and not affinity.is_empty:
            measured = affinity.means(self.setup.routes.tasks)
            self.artefact(ARTEFACT, measured.model_dump(mode="json"), ArtefactKind.OTHER)
        self._state.progress.finish_stage(stage)
        self._state.early_stopping.begin_stage()
        self._optimiser = {}
        self._save()
        self._check_stop()

    def remember(self, key: str, value: Any) -> None:
        self._state.progress.remembered[key] = value
        self._save()
        self._check_stop()

    def recall(self, key: str) -> Any:
        return self._state.progress.remembered.get(key)

    def reuse(self, stage: str) -> Mapping[str, Tensor] | None:
        spec = self.run.spec() if self.processes.is_main else None
        reused = find_stage(self.run.path.parent, spec, self.setup.method, stage) if spec is not None else None
        if reused is not None:
            LOG.info("stage %r is reused from %s, which has trained it already", stage, reused.run)
        return self.processes.broadcast(None if reused is None else reused.state)

    def artefact(self, name: str, value: Any, kind: ArtefactKind) -> None:
        if self.processes.is_main:
            write_artefact(self.run.artefacts, name, value, kind)

    def summary(self, memory_estimate: int | None = None) -> TrainingSummary:
        """The cost of the training so far, over all its processes and restarts."""
        self._measure_memory()
        progress = self._state.progress
        summary = progress.summary(memory_estimate, self._micro_tokens())
        if not summary.steps:
            return summary
        layout = self._choose_layout()
        kernel = layout.attention or getattr(self.setup.loaded.model.config, "_attn_implementation", None)
        return summary.model_copy(update={"packed": layout.packed, "attention": kernel})

    def where(self) -> str:
        """The current stage and step, for failure.json."""
        return f"stage {self._state.progress.stage}, step {self._state.progress.step + 1}"

    def _begin(
        self, stage: str, plan: StepPlan, names: Sequence[str] | None, tasks: Sequence[str] | None
    ) -> StepRunner:
        """The optimiser of a stage, with its state where the stage is resumed."""
        everything, progress = self.setup.adapter.trainable(), self._state.progress
        trained = list(everything) if names is None else list(names)
        if not trained:
            raise TrainingError(
                f"stage {stage!r} has no parameters to train: Trainer.train got an empty list of parameters"
            )
        for name, parameter in everything.items():
            parameter.requires_grad_(name in set(trained))
        chosen = trained_parameters(self.setup.adapter, self.setup.method, trained)
        balancing, subject = self.setup.balancing, self._balanced_stage(stage, plan)
        parts = Stage(
            name=stage,
            steps=plan.steps,
            key=(self.seed, *(self.setup.routes.tasks if tasks is None else tasks)),
            reads=self._reads,
            trained=chosen,
            balance=None if balancing is None else balancing.weights(subject, self.setup.encoder.encode),
            combined=None if balancing is None else balancing.combined(subject, chosen),
        )
        setup = self.setup
        steps = StepRunner(
            setup.loaded,
            setup.adapter,
            setup.config,
            parts,
            self._choose_layout(),
            self.processes,
            self._frozen_blocks,
            self._compiled,
        )
        steps.division.micro_tokens = self._micro_tokens()
        if progress.stage == stage:
            steps.load_state(self._optimiser, progress.scaler)
            if parts.balance is not None:
                parts.balance.weights.load_state(progress.balance)
        else:
            progress.begin_stage(stage)
            self._state.early_stopping.begin_stage()
        return steps

    def _balanced_stage(self, stage: str, plan: StepPlan) -> BalancedStage:
        epoch = max(1, round(plan.steps * plan.n_examples / plan.total))
        tasks = tuple(task for task in self.setup.routes.tasks if task in plan.examples)
        return BalancedStage(name=stage, tasks=tasks, epoch=epoch, seed=self.seed)

    @property
    def _frozen_blocks(self) -> FrozenBlocks | None:
        folder = self.setup.hidden_states
        return None if folder is None else frozen_blocks(self.setup.loaded, folder)

    @property
    def _reads(self) -> bool:
        return Trait.LABEL_FREE in self.setup.method.traits

    def _choose_layout(self) -> Layout:
        if self._layout is None:
            self._layout = choose_layout(self.setup.loaded, self.setup.adapter, self.setup.config, self._reads)
        return self._layout

    def _micro_tokens(self) -> int:
        configured = micro_tokens(self.setup.config, self.setup.loaded.device)
        return min(configured, self._state.progress.micro_tokens or configured)

    def _measure_memory(self) -> None:
        peak = peak_bytes(self.setup.loaded.device, self.setup.memory_before)
        self._state.progress.count_peak_memory(peak)

    def _save(self) -> None:
        """Write a checkpoint of the whole training."""
        if not self.processes.is_main:
            return
        progress, early_stopping = self._state.progress, self._state.early_stopping
        steps = self._steps if progress.stage else None
        if steps is not None:
            progress.scaler = dict(steps.scaler.state_dict())
            balance = steps.stage.balance
            progress.balance = {} if balance is None else balance.weights.state()
        progress.log_bytes = self._state.log.n_bytes()
        progress.dev_scores = list(early_stopping.scores)
        progress.affinity = {} if self._state.affinity is None else vars(self._state.affinity)
        self._measure_memory()
        self._state.checkpoints.save(
            Checkpoint(
                adapter=trainable_state(self.setup.adapter.state_dict()),
                optimiser=trainable_state(steps.state() if steps is not None else {}),
                best=early_stopping.best,
                progress=progress,
            )
        )

    def _no_affinity(self) -> AffinitySums | None:
        """The sums before the first measured step; None if affinity is not measured."""
        way = self.setup.config.affinity
        ways = {None: (), GRADIENTS: (GRADIENTS,), LOOKAHEAD: (GRADIENTS, LOOKAHEAD)}[way]
        return AffinitySums.zero(len(self.setup.routes), ways) if ways else None

    def _restored_affinity(self, saved: Mapping[str, Any]) -> AffinitySums | None:
        """The sums of a checkpoint, if it has those that are measured now."""
        empty = self._no_affinity()
        if empty is None or saved.get("sums", {}).keys() != empty.sums.keys():
            return empty
        return AffinitySums(**saved)

    def _check_stop(self) -> None:
        # Several processes stop together: after a step, or when training has ended.
        if self.processes.world_size == 1:
            self.stop.check()


def _read_spec(run: RunDirectory) -> dict[str, Any]:
    path = run.path / "spec.json"
    spec: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return spec


def _compiled_blocks(setup: TrainingSetup) -> CompiledBlocks | None:
    """The blocks as graphs, if ``train.compile`` asks for them."""
    config = setup.config
    return CompiledBlocks(setup.loaded.model, checkpointed=config.gradient_checkpointing) if config.compile else None
