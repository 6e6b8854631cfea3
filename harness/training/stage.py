"""The steps of one stage: each is logged, and followed by an evaluation or a checkpoint if one is due."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded, Encoder
from harness.data.mixture import Mixture, StepPlan
from harness.data.routes import Routes
from harness.errors import NotFinite
from harness.method import Adapter, AdapterMethod
from harness.models.loading import LoadedModel
from harness.runtime.deterministic import deterministic_algorithms
from harness.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from harness.runtime.prefetch import Prefetcher
from harness.runtime.progress_bar import ProgressBar
from harness.runtime.signals import Interrupted, StopFlag
from harness.store.adapter import trainable_state
from harness.training.affinity import AffinityOfStep, AffinitySums, is_measured
from harness.training.attention import attention, checkpoint_activations
from harness.training.checkpoint import CheckpointManager
from harness.training.division import StepBatches
from harness.training.early_stopping import EarlyStopping
from harness.training.progress import Progress, log_line
from harness.training.step import StepResult, StepRunner, UseTaskGradients
from harness.training.task_balance import TaskBalancing
from harness.training.task_gradients import shared_parameters
from harness.training.train_log import TrainLog

LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """The subject of a training: a method's adapter on a model, with data and settings.

    routes: the tasks that the adapter was attached for.
    balancing: of tasks; None for what ``train.loss`` gives.
    hidden_states: the folder for ``train.cache_frozen``; None if it is off.
    memory_before: bytes that the process used before the model was loaded, for the peak on a CPU.
    """

    config: TrainConfig
    method: AdapterMethod
    adapter: Adapter
    loaded: LoadedModel
    encoder: Encoder
    mixture: Mixture
    routes: Routes
    balancing: TaskBalancing | None = None
    hidden_states: Path | None = None
    memory_before: int | None = None


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """A step that is done and logged, and is not in a checkpoint yet.

    part: the cluster of tasks that is trained, "" where all tasks share one adapter. step: counts from 1.
    """

    part: str
    stage: str
    step: int


StepHook = Callable[[StepDone], None]


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """The parts of a training that its stages share.

    on_step: called after each step, on every rank. affinity: of all stages together; None if it is not measured.
    """

    progress: Progress
    log: TrainLog
    checkpoints: CheckpointManager
    early_stopping: EarlyStopping
    stop: StopFlag
    processes: ProcessGroup = SINGLE_PROCESS
    part: str = ""
    on_step: StepHook | None = None
    affinity: AffinitySums | None = None


@dataclass(frozen=True, kw_only=True)
class _Next:
    """The next step, prepared while the current one is computed: its sequences, and their micro-batches."""

    sequences: Sequence[Encoded]
    batches: StepBatches | None


@dataclass(frozen=True, kw_only=True)
class StageRunner:
    """Runs one stage from the step of ``state.progress`` to its end.

    tasks: whose examples the stage uses. save: writes a checkpoint of the whole training.
    """

    setup: TrainingSetup
    state: TrainingState
    plan: StepPlan
    steps: StepRunner
    tasks: Sequence[str]
    save: Callable[[], None]

    def run(self) -> None:
        """Run the remaining steps.

        Raises: Interrupted after a signal, once a checkpoint is saved; NotFinite; TrainingError out of memory.
        """
        progress, early_stopping, config = self.state.progress, self.state.early_stopping, self.setup.config
        title, quiet = f"train {self.steps.stage.name}", not self.state.processes.is_main
        saved_at = time.monotonic()
        with (
            Prefetcher(self._next, progress.step, self.plan.steps) as ahead,
            ProgressBar(title, self.plan.steps, progress.step, quiet=quiet) as bar,
            ExitStack() as training,
        ):
            training.enter_context(self._training_mode())
            while progress.step < self.plan.steps and not early_stopping.is_over():
                result = self._step(ahead)
                bar.update(result.loss, result.lr, progress.tokens_per_second)
                if early_stopping.is_due(progress.step, self.plan.steps):
                    training.close()  # predictions are generated in evaluation mode
                    ahead.wait_until_idle()
                    self._evaluate()
                    training.enter_context(self._training_mode())
                late = time.monotonic() - saved_at > 60 * config.checkpoint_minutes
                if result.stop or late or progress.step % config.checkpoint_steps == 0:
                    self.save()
                    saved_at = time.monotonic()
                if result.stop:
                    raise Interrupted(self.state.stop.signum or signal.SIGTERM)

    def _next(self, step: int) -> _Next:
        sequences = self.setup.encoder.encode(self.setup.mixture.examples.at(self.plan.batch(step)))
        return _Next(sequences=sequences, batches=self.steps.ahead(sequences, self.setup.routes))

    def _step(self, ahead: Prefetcher[_Next]) -> StepResult:
        state, progress, stage = self.state, self.state.progress, self.steps.stage
        made = ahead.get()
        sequences = made.sequences
        micro_tokens = self.steps.division.micro_tokens
        try:
            use = self._affinity_of(progress.step, sequences)
            result = self.steps.step(
                progress.step, sequences, self.setup.routes, stop=bool(state.stop), use=use, ahead=made.batches
            )
        except NotFinite as error:
            raise NotFinite(
                f"{error}. The last good checkpoint: {state.checkpoints.last_good or 'none yet'}"
            ) from error
        if self.steps.division.micro_tokens < micro_tokens:
            progress.micro_tokens = self.steps.division.micro_tokens
            self._warn_of_memory()
        progress.count_step(result, sequences, ahead.waited_seconds)
        state.log.append(log_line(stage.name, progress.step, result))
        if state.on_step is not None:
            state.on_step(StepDone(part=state.part, stage=stage.name, step=progress.step))
        return result

    def _affinity_of(self, number: int, sequences: Sequence[Encoded]) -> UseTaskGradients | None:
        """What measures the affinity of tasks in a step; None in steps that are not measured."""
        sums, config = self.state.affinity, self.setup.config
        if sums is None or not is_measured(config, number, self.plan.steps, len(self.tasks)):
            return None
        if not shared_parameters(self.steps.stage.trained):
            return None
        return AffinityOfStep(
            sums=sums, runner=self.steps, number=number, sequences=sequences, routes=self.setup.routes
        )

    def _warn_of_memory(self) -> None:
        if self.state.processes.is_main:
            LOG.warning(
                "out of memory: the micro-batch is reduced to %d tokens (results are not affected)",
                self.steps.division.micro_tokens,
            )

    def _evaluate(self) -> None:
        early_stopping, step = self.state.early_stopping, self.state.progress.step
        assert early_stopping.evaluate is not None
        score = self.state.processes.broadcast(early_stopping.evaluate(self.tasks))
        if score is not None:
            early_stopping.add(step, score, self._weights)
            self.state.log.append({"stage": self.steps.stage.name, "step": step, "dev": score})

    def _weights(self) -> dict[str, Tensor]:
        """The parameters of the stage, copied to the CPU."""
        state = trainable_state(self.setup.adapter.state_dict())
        return {name: tensor.clone() for name, tensor in state.items() if name in self.steps.stage.parameters}

    @contextmanager
    def _training_mode(self) -> Iterator[None]:
        """The model in training mode; in evaluation mode and without hooks when the context ends."""
        model, config = self.setup.loaded.model, self.setup.config
        checkpointed = config.gradient_checkpointing and self.steps.compiled is None  # Compiled blocks have their own.
        with attention(model, self.steps.division.layout.attention), deterministic_algorithms(config.deterministic):
            if checkpointed:
                checkpoint_activations(model, True, self.steps.checkpoint_contexts)
            model.train()
            try:
                yield
            finally:
                model.eval()
                if checkpointed:
                    checkpoint_activations(model, False)
