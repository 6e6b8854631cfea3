"""One run from its resolved spec to its record: train, generate, score, each resumed where it was left."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.clusters import Cluster, clusters_of
from harness.config.spec import directory_name, run_id
from harness.data.rows import Rows
from harness.method import Trait
from harness.pipeline.predict import Answered, answer_all, generator
from harness.pipeline.prepare import Base, Prepared, attach, load_base, mixture, train_rows
from harness.pipeline.rescore import score
from harness.pipeline.resolve import Resolved
from harness.pipeline.warm_start import load_start
from harness.runtime.signals import Interrupted, StopFlag, stop_gracefully
from harness.store.adapter import has_adapter, save_adapter
from harness.store.files import write_json
from harness.store.provenance import gather
from harness.store.record import Failure, RunRecord, Scores, TrainingSummary
from harness.store.run_directory import RunDirectory
from harness.training.progress import trained_together
from harness.training.reuse import Taken, take_training

if TYPE_CHECKING:
    from harness.runtime.distributed import Processes
    from harness.training.dev_score import DevLook
    from harness.training.trainer import EngineTrainer

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run. fresh: False where it had been finished before."""

    run: RunDirectory
    record: RunRecord
    scores: Scores
    fresh: bool


def execute(resolved: Resolved, out: Path, inputs: dict[str, Any], say: Say) -> Outcome | None:
    """Make the run, or what is missing of it.

    Under torchrun every process calls this. All train; only the first one writes, evaluates and has an outcome.

    Args:
        inputs: what another command needs to find data and model again (kept in inputs.json, not part of the run_id).
        say: takes notices for people, one line each.

    Raises: RunLocked; Interrupted; any HarnessError, after failure.json has been written.
    """
    from harness.runtime.distributed import join

    run = RunDirectory(out / directory_name(resolved.spec))
    processes = join()
    if not processes.first:
        with stop_gracefully() as stop:
            _Work(resolved, run, stop, lambda _: None, processes).assist()
        return None
    with run.lock(), stop_gracefully() as stop:
        record = run.record()
        if record is not None:
            processes.tell(list[str]())
            return Outcome(
                run=run, record=record, scores=run.scores() or _score(resolved, run, record.n_train), fresh=False
            )
        run.write("spec.json", resolved.spec)
        write_json(run.path / "inputs.json", inputs)
        (run.path / "failure.json").unlink(missing_ok=True)
        work = _Work(resolved, run, stop, say, processes)
        try:
            record, scores = work.all()
        except (Interrupted, KeyboardInterrupt):
            raise
        except Exception as error:  # whatever it is, failure.json names it for a sweep, and it goes on its way
            _write_failure(run, work, error)
            raise
        return Outcome(run=run, record=record, scores=scores, fresh=True)


class _Work:
    """The phases of one run. ``phase`` and ``where`` are what failure.json will say."""

    def __init__(self, resolved: Resolved, run: RunDirectory, stop: StopFlag, say: Say, processes: Processes) -> None:
        self.resolved, self.run, self.stop, self.say, self.processes = resolved, run, stop, say, processes
        self.started_at = datetime.now(UTC)
        self.taken: Taken | None = None
        self.phase = "prepare"
        self.where: Callable[[], str | None] = lambda: None

    def all(self) -> tuple[RunRecord, Scores]:
        rows = train_rows(self.resolved)
        base = None if self.resolved.model is None else load_base(self.resolved, rows)
        self._warn_of_gaps(rows)
        training = self._train(base, rows)
        self.processes.leave()
        self.phase, self.where = "generate", lambda: None
        answered = answer_all(self.run, self.resolved, base, rows, self.run, self.stop, self.say)
        self.phase = "score"
        record = self._record(base, rows, training, answered)
        scores = _score(self.resolved, self.run, record.n_train)
        self.run.write("record.json", record)
        return record, scores

    def assist(self) -> None:
        """Train beside the first process the clusters that it names."""
        names = self.processes.tell(list[str]())
        if names:
            rows = train_rows(self.resolved)
            assert rows is not None
            base = load_base(self.resolved, rows)
            for cluster in clusters_of(self.resolved.spec):
                if cluster.name in names:
                    self._fit(cluster, base, rows, self.processes)
        self.processes.leave()

    def _train(self, base: Base | None, rows: Rows | None) -> TrainingSummary | None:
        """Train each cluster that is not trained yet; its adapter on disk is what says so."""
        from harness.runtime.distributed import ALONE

        if Trait.TRAINS not in self.resolved.method.traits:
            self.processes.tell(list[str]())
            return None
        assert base is not None
        assert rows is not None
        self.phase = "train"
        self.taken = take_training(self.run, self.resolved.spec)
        if self.taken is not None:
            self.say(f"the training is taken from {self.taken.run}, which has made it already")
            self.processes.tell(list[str]())
            return self.taken.training
        clusters = clusters_of(self.resolved.spec)
        missing = [c.name for c in clusters if not has_adapter(self.run.of(c.name).adapter)]
        self.processes.tell(missing)
        return trained_together(
            [self._fit(c, base, rows, self.processes if c.name in missing else ALONE) for c in clusters]
        )

    def _fit(self, cluster: Cluster, base: Base, rows: Rows, processes: Processes) -> TrainingSummary:
        """Train a cluster's adapter, where it is not on disk, and take it off the model again."""
        from harness.training.memory import estimate

        run, spec = self.run.of(cluster.name), self.resolved.spec
        prepared = attach(self.resolved, base, cluster)
        trainer = self._trainer(prepared, rows, run, processes)
        self._say_all(trainer.warnings)
        self.where = lambda: f"cluster {cluster.name}, {trainer.where()}" if cluster.name else trainer.where()
        memory = None
        if any(rows.counts[t] for t in cluster.tasks):
            memory = estimate(prepared, spec.train, mixture(self.resolved, rows))
            if not has_adapter(run.adapter):
                self.resolved.method.fit(prepared.adapter, trainer, prepared.tasks)
        if processes.first and not has_adapter(run.adapter):
            save_adapter(run.adapter, prepared.adapter, spec, cluster.tasks)
        summary = trainer.summary(memory)
        prepared.adapter.detach()
        return summary

    def _trainer(self, prepared: Prepared, rows: Rows, run: RunDirectory, processes: Processes) -> EngineTrainer:
        from harness.training.trainer import EngineTrainer

        return EngineTrainer(
            run=run,
            run_id=run_id(self.resolved.spec),
            config=self.resolved.spec.train,
            method=self.resolved.method,
            adapter=prepared.adapter,
            loaded=prepared.loaded,
            encoder=prepared.encoder,
            mixture=mixture(self.resolved, rows),
            tasks=prepared.tasks,
            stop=self.stop,
            say=self.say,
            look=self._look(prepared),
            memory_before=prepared.memory_before,
            processes=processes,
            start=None if has_adapter(run.adapter) else load_start(self.resolved),
        )

    def _look(self, prepared: Prepared) -> DevLook | None:
        from harness.training.dev_score import DevLook, dev_examples

        if self.resolved.spec.train.eval_every is None:
            return None
        if self.resolved.spec.eval.split == "dev":
            self.say("train.eval_every chooses by dev rows, and dev is evaluated too: its scores are too good")
        return DevLook(
            generator=generator(self.resolved, prepared),
            encoder=prepared.encoder,
            tasks=self.resolved.suite.tasks,
            examples={t: e for t, e in dev_examples(self.resolved).items() if t in prepared.tasks},
        )

    def _record(
        self,
        base: Base | None,
        rows: Rows | None,
        training: TrainingSummary | None,
        answered: Answered,
    ) -> RunRecord:
        resolved = self.resolved
        tasks = list(resolved.rows.by_task)
        data = {"label": resolved.spec.data.label, **resolved.suite.describe(resolved.source)}
        train = resolved.spec.train
        settings: dict[str, Any] = {"compile": train.compile, "gradient_checkpointing": train.gradient_checkpointing}
        if training is not None:
            settings |= {"trained_by": self.taken.run} if self.taken is not None else {}
            settings |= {"micro_tokens": training.micro_tokens, "packed": training.packed}
        if base is not None:
            data["limits"] = dict(base.encoder.limits)
            settings |= {"dtype": str(base.loaded.dtype), "device": str(base.loaded.device)}
        return RunRecord(
            run_id=run_id(resolved.spec),
            spec=resolved.spec,
            parameters=answered.parameters,
            training=training,
            generation=answered.generation,
            provenance=gather(data, settings),
            n_train={t: rows.counts[t] if rows is not None else 0 for t in tasks},
            sample=resolved.spec.data.sample,
            started_at=self.started_at,
            finished_at=datetime.now(UTC),
        )

    def _warn_of_gaps(self, rows: Rows | None) -> None:
        if rows is None or Trait.TRAINS not in self.resolved.method.traits:
            return
        empty = [t for t, n in rows.counts.items() if n == 0]
        if empty:
            self.say(f"no training rows, served by shared parts and marked in tables: {', '.join(empty)}")

    def _say_all(self, lines: list[str]) -> None:
        for line in lines:
            self.say(line)


def _score(resolved: Resolved, run: RunDirectory, n_train: dict[str, int]) -> Scores:
    return score(run, resolved.spec, resolved.suite, resolved.rows, n_train).scores


def _write_failure(run: RunDirectory, work: _Work, error: BaseException) -> None:
    failure = Failure(
        stage=work.phase,
        where=work.where(),
        error=type(error).__name__,
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        failed_at=datetime.now(UTC),
    )
    run.write("failure.json", failure)
