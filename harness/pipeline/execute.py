"""One run from its resolved spec to its record: train, generate, score, each resumed where it was interrupted."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.config.balance import balancer_of
from harness.config.clusters import Cluster, clusters_of, to_toml
from harness.config.request import to_json
from harness.config.spec import directory_name, run_id
from harness.data.splits import SplitExamples
from harness.errors import StoreError, add_details
from harness.method import adapter_method
from harness.models.parameter_count import describe_adapted
from harness.pipeline.predict import Predicted, answering, predict_all
from harness.pipeline.prepare import Base, Prepared, attach, load_base, mixture, train_examples
from harness.pipeline.reopen import RunData
from harness.pipeline.rescore import score
from harness.pipeline.resolve import Resolved
from harness.pipeline.round_trip import check_round_trip
from harness.pipeline.warm_start import load_start
from harness.runtime.signals import Interrupted, StopFlag, stop_gracefully
from harness.store.adapter import has_adapter, save_adapter
from harness.store.affinity import read_measured
from harness.store.files import write_atomic, write_json
from harness.store.provenance import gather
from harness.store.record import Failure, RunRecord, Scores, TrainingSummary
from harness.store.run_directory import RunDirectory, folder_for_all_runs
from harness.training.progress import trained_together
from harness.training.reuse import ReusedTraining, reuse_training

if TYPE_CHECKING:
    from harness.runtime.distributed import ProcessGroup
    from harness.task import Example
    from harness.training.dev_score import DevEvaluator
    from harness.training.stage import StepHook
    from harness.training.task_balance import TaskBalancing
    from harness.training.trainer import EngineTrainer

LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """A finished run. fresh: False where it had been finished before."""

    run: RunDirectory
    record: RunRecord
    scores: Scores
    fresh: bool


@dataclass(frozen=True, kw_only=True)
class RemainingWork:
    """The remaining work, as determined by rank 0 and broadcast to all ranks.

    finished: the run has its record; nothing is left to train.
    clusters: the names of the clusters whose adapters are still to be trained.
    reused: the training that another finished run with the same training settings has already done.
    """

    finished: bool = False
    clusters: frozenset[str] = frozenset()
    reused: ReusedTraining | None = None


def execute(resolved: Resolved, out: Path, on_step: StepHook | None = None) -> RunOutcome | None:
    """Execute the run, or the phases of it that are missing.

    Under torchrun every process calls this. All of them train and generate; rank 0 scores, and alone has an outcome.

    Args:
        out: the folder of runs.
        on_step: called after each training step, on every rank.

    Raises: RunLocked; Interrupted; any HarnessError, after failure.json has been written.
    """
    from harness.runtime.distributed import join, require_ranks

    run = RunDirectory(out / directory_name(resolved.spec))
    processes = join()
    require_ranks(processes, resolved.spec.train.shard_base)
    with run.lock() if processes.is_main else nullcontext(), stop_gracefully() as stop:
        work = _Execution(resolved, run, stop, processes, on_step)
        try:
            return work.all()
        except (Interrupted, KeyboardInterrupt):
            raise
        except Exception as error:  # failure.json names any error, so that a sweep can report it and continue
            # Under torchrun the first error ends all ranks, and theirs are its consequences.
            if processes.world_size == 1 or run.failure() is None:
                _write_failure(run, work, error)
            raise


class _Execution:
    """The phases of one run. ``phase`` and ``where`` are what failure.json reports."""

    def __init__(
        self,
        resolved: Resolved,
        run: RunDirectory,
        stop: StopFlag,
        processes: ProcessGroup,
        on_step: StepHook | None,
    ) -> None:
        self.resolved, self.run, self.stop, self.processes = resolved, run, stop, processes
        self.on_step = on_step
        self.started_at = datetime.now(UTC)
        self.phase = "prepare"
        self.noted = False
        self.where: Callable[[], str | None] = lambda: None

    def all(self) -> RunOutcome | None:
        """Every phase that is left; None on every rank but rank 0."""
        remaining = self.processes.broadcast(self._remaining_work() if self.processes.is_main else RemainingWork())
        if remaining.finished:
            return self._finished() if self.processes.is_main else None
        if not self.processes.is_main and self.resolved.model is None:
            return None  # A baseline, or a back end, is asked by one process.
        train = train_examples(self.resolved)
        base = None if self.resolved.model is None else load_base(self.resolved, train, self.processes)
        check_round_trip(self.resolved, base, train)
        training = self._train(remaining, base, train)
        if self.processes.is_main:
            self._note_missing_affinity()
        self.phase, self.where = "generate", lambda: None
        predicted = self._predict(base, train)
        self.processes.leave()
        if not self.processes.is_main:
            return None
        self.phase = "score"
        record = self._record(remaining, base, train, training, predicted)
        scores = self._score(record)
        self.run.write("record.json", record)
        return RunOutcome(run=self.run, record=record, scores=scores, fresh=True)

    def _predict(self, base: Base | None, train: SplitExamples | None) -> Predicted:
        """Every prediction, by all ranks if they have the model."""
        from harness.runtime.distributed import SINGLE_PROCESS

        processes = SINGLE_PROCESS if base is None else self.processes
        processes.wait()  # Rank 0 has written the adapters that all ranks read now.
        return predict_all(self.run, self.resolved, base, train, self.stop, processes=processes)

    def _remaining_work(self) -> RemainingWork:
        """The remaining work; an adapter on disk means that its cluster has been trained."""
        if self.run.record() is not None:
            self._note_missing_affinity()
            return RemainingWork(finished=True)
        self.run.write("spec.json", self.resolved.spec)
        write_json(self.run.inputs, to_json(self.resolved.request, self.resolved.source))
        if self.resolved.spec.clusters is not None:
            write_atomic(self.run.path / "clusters.toml", to_toml(self.resolved.spec.clusters).encode())
        (self.run.path / "failure.json").unlink(missing_ok=True)
        if not self.resolved.method.trains:
            return RemainingWork()
        reused = reuse_training(self.run, self.resolved.spec)
        if reused is not None:
            LOG.info("the training is reused from %s, which has the same training settings", reused.run)
            return RemainingWork(reused=reused)
        clusters = clusters_of(self.resolved.spec)
        return RemainingWork(
            clusters=frozenset(c.name for c in clusters if not has_adapter(self.run.of(c.name).adapter))
        )

    def _finished(self) -> RunOutcome:
        record = self.run.record()
        assert record is not None
        return RunOutcome(run=self.run, record=record, scores=self.run.scores() or self._score(record), fresh=False)

    def _train(
        self, remaining: RemainingWork, base: Base | None, train: SplitExamples | None
    ) -> TrainingSummary | None:
        """Train each cluster that is left, and read the costs of the others from disk, on all ranks."""
        if remaining.reused is not None:
            return remaining.reused.training
        if not self.resolved.method.trains or base is None or train is None:
            return None
        self.phase = "train"
        if self.processes.is_main and train.missing:
            LOG.warning(
                "no training examples for %s: only shared parameters apply to them, and tables mark their scores",
                ", ".join(train.missing),
            )
        clusters = clusters_of(self.resolved.spec)
        return trained_together([self._fit(c, base, train, is_left=c.name in remaining.clusters) for c in clusters])

    def _fit(self, cluster: Cluster, base: Base, train: SplitExamples, *, is_left: bool) -> TrainingSummary:
        """Train a cluster's adapter, if that is left, and detach it afterwards."""
        from harness.training.memory import estimate_memory

        run, spec = self.run.of(cluster.name), self.resolved.spec
        prepared = attach(self.resolved, base, cluster)
        self._note_adapted(prepared)
        trainer = self._trainer(prepared, train, run, is_left=is_left)
        self.where = lambda: f"cluster {cluster.name}, {trainer.where()}" if cluster.name else trainer.where()
        memory = None
        if any(train.counts[t] for t in cluster.tasks):
            memory = estimate_memory(
                base.loaded, prepared.adapter, base.encoder, cluster.tasks, spec.train, trainer.mixture
            )
            if is_left:
                adapter_method(self.resolved.method).fit(prepared.adapter, trainer, prepared.tasks)
        if self.processes.is_main and is_left:
            save_adapter(run.adapter, prepared.adapter, spec, cluster.tasks)
        summary = trainer.summary(memory)
        prepared.adapter.detach()
        return summary

    def _note_adapted(self, prepared: Prepared) -> None:
        """Say once what the adapter does not reach; it is the same in every cluster."""
        note = describe_adapted(prepared.loaded.model)
        if note is not None and self.processes.is_main and not self.noted:
            LOG.info(note)
        self.noted = True

    def _note_missing_affinity(self) -> None:
        """Say that affinity was asked for and not measured: the run had finished without, or has nothing to measure."""
        spec = self.resolved.spec
        if spec.train.affinity is None:
            return
        runs = [self.run.of(cluster.name) for cluster in clusters_of(spec) if len(cluster.tasks) > 1]
        if any(read_measured(run) is not None for run in runs):
            return
        LOG.warning(
            "%s has no affinity of tasks (train.affinity): it was trained without this key, or no measured step had a "
            "parameter that tasks share. To train it again, use another --out, or delete it first",
            self.run.path,
        )

    def _trainer(self, prepared: Prepared, train: SplitExamples, run: RunDirectory, *, is_left: bool) -> EngineTrainer:
        from harness.training.stage import TrainingSetup
        from harness.training.trainer import EngineTrainer

        evaluator = self._dev_evaluator(prepared)
        trainer = EngineTrainer(
            run=run,
            run_id=run_id(self.resolved.spec),
            setup=TrainingSetup(
                config=self.resolved.spec.train,
                method=adapter_method(self.resolved.method),
                adapter=prepared.adapter,
                loaded=prepared.loaded,
                encoder=prepared.encoder,
                mixture=mixture(self.resolved, train),
                routes=prepared.routes,
                balancing=self._balancing(prepared),
                hidden_states=self._hidden_states(),
                memory_before=prepared.base.memory_before,
            ),
            stop=self.stop,
            evaluate=None if evaluator is None else evaluator.evaluate,
            processes=self.processes,
            start=load_start(self.resolved.parent) if is_left else None,
            on_step=self.on_step,
        )
        trainer.restore()
        return trainer

    def _hidden_states(self) -> Path | None:
        """The folder of the base model's hidden states, which all runs of one --out share."""
        model = self.resolved.spec.model
        if model is None or not self.resolved.spec.train.cache_frozen:
            return None
        return folder_for_all_runs(self.run.path.parent) / "hidden_states" / model.fingerprint[:16]

    def _dev_evaluator(self, prepared: Prepared) -> DevEvaluator | None:
        from harness.training.dev_score import DevEvaluator

        if self.resolved.spec.train.eval_every is None:
            return None
        return DevEvaluator(
            answering=answering(self.resolved, prepared, self.processes),
            examples=self._dev_examples(prepared, "train.eval_every"),
        )

    def _balancing(self, prepared: Prepared) -> TaskBalancing | None:
        from harness.training.task_balance import TaskBalancing

        config = self.resolved.spec.train
        balancer = balancer_of(config)
        if balancer is None or config.balance is None:
            return None
        key = f"train.balance={config.balance.name}"
        return TaskBalancing(balancer=balancer, dev=self._dev_examples(prepared, key) if balancer.reads_dev else {})

    def _dev_examples(self, prepared: Prepared, key: str) -> dict[str, list[Example]]:
        """Dev examples of each task of an adapter, for training. key: what needs them."""
        from harness.data.splits import Choice
        from harness.training.dev_score import dev_examples

        resolved = self.resolved
        part = "tune" if resolved.spec.eval.part is not None else None
        if resolved.spec.eval.split == "dev" and part is None:
            LOG.warning("%s uses dev for training, and dev is evaluated too: these scores are biased upwards", key)
        tasks = list(resolved.evaluated.by_task)
        choice = Choice(per_task=resolved.spec.train.eval_rows, part=part)
        examples = dev_examples(resolved.suite, resolved.source, tasks, choice, key=key)
        return {t: e for t, e in examples.items() if t in prepared.tasks}

    def _record(
        self,
        remaining: RemainingWork,
        base: Base | None,
        train: SplitExamples | None,
        training: TrainingSummary | None,
        predicted: Predicted,
    ) -> RunRecord:
        resolved, config = self.resolved, self.resolved.spec.train
        data = {"label": resolved.spec.data.label, **resolved.suite.describe(resolved.source)}
        settings: dict[str, Any] = {
            "compile": config.compile,
            "gradient_checkpointing": config.gradient_checkpointing,
            "deterministic": config.deterministic,
        }
        if training is not None:
            settings |= {"trained_by": remaining.reused.run} if remaining.reused is not None else {}
            settings |= {name: getattr(training, name) for name in ("micro_tokens", "packed", "attention")}
        if base is not None:
            data["limits"] = dict(base.encoder.limits)
            settings |= {"dtype": str(base.loaded.dtype), "device": str(base.loaded.device)}
            settings |= {} if base.loaded.quantised is None else {"quantised": base.loaded.quantised}
            settings |= {} if base.loaded.sharding is None else {"shards": base.loaded.sharding.n_ranks}
        return RunRecord(
            run_id=run_id(resolved.spec),
            spec=resolved.spec,
            parameters=predicted.parameters,
            training=training,
            generation=predicted.generation,
            provenance=gather(data, settings),
            n_train={t: train.counts[t] if train is not None else 0 for t in resolved.evaluated.by_task},
            sample=resolved.spec.data.sample and not resolved.suite.sample_is_benchmark,
            started_at=self.started_at,
            finished_at=datetime.now(UTC),
        )

    def _score(self, record: RunRecord) -> Scores:
        resolved = self.resolved
        data = RunData(spec=resolved.spec, suite=resolved.suite, evaluated=resolved.evaluated)
        return score(self.run, data, record.n_train).scores


def _write_failure(run: RunDirectory, work: _Execution, error: BaseException) -> None:
    failure = Failure(
        stage=work.phase,
        where=work.where(),
        error=type(error).__name__,
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        failed_at=datetime.now(UTC),
    )
    try:
        run.write("failure.json", failure)
    except (StoreError, OSError) as second:  # the first error is the one to show
        LOG.warning("failure.json cannot be written: %s", second)
    else:
        add_details(error, run.path / "failure.json")
