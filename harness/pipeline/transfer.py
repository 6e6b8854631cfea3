"""The transfer matrix of a finished run: the weights of each task, evaluated on the examples of every task.

Results have a directory of their own inside the run, ``transfer/<hash of the settings>/``: settings.json, the
predictions of each adapter (``adapters/<task>/predictions/``) and of the base model (``base/predictions/``), and, last,
transfer.json. The run's own files stay as they are.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.data.routes import FixedRoute
from harness.errors import UsageError
from harness.generation.answers import Answering
from harness.generation.backend import predict_with_model
from harness.generation.generator import Generator
from harness.generation.predictions import PredictionWriter
from harness.method import BaseRouting, Trait
from harness.pipeline.evaluate import changed_evaluation, settings_key
from harness.pipeline.predict import answering
from harness.pipeline.prepare import Prepared, train_examples
from harness.pipeline.reopen import ReopenedRun, RunData, load, reopen
from harness.pipeline.rescore import scores_of
from harness.pipeline.resolve import Resolved
from harness.runtime.signals import StopFlag, stop_gracefully
from harness.store.record import EvaluationSettings, Scores
from harness.store.run_directory import RunDirectory, parse_file
from harness.store.transfer import FILE, Transfer

LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Transferred:
    """A transfer matrix that is done. fresh: False where it had been done before."""

    directory: Path
    transfer: Transfer
    fresh: bool


def transfer(path: Path, keys: Mapping[str, Any], *, data: str | None = None, model: str | None = None) -> Transferred:
    """Evaluate the weights of each task on every task; the same call again resumes, and does nothing when all is done.

    Args:
        keys: ``eval.*``, and ``method.*`` for the method's inference fields; what is not given is as in the run.
        data, model: their current locations, if they have moved.

    Raises: UsageError for a run whose tasks have no weights of their own, or for a key that cannot change without
        training; RunLocked; Interrupted; errors of ``harness.pipeline.reopen``.
    """
    finished = reopen(path, data, model)
    _require_own_weights(finished)
    resolved, settings = changed_evaluation(finished, keys, "harness transfer")
    directory = RunDirectory(finished.run.path / "transfer" / settings_key(settings))
    file = directory.path / FILE
    with directory.lock(), stop_gracefully() as stop:
        if file.exists():
            return Transferred(
                directory=directory.path, transfer=parse_file(file, file.read_bytes(), Transfer), fresh=False
            )
        directory.write("settings.json", settings)
        found = _evaluate(finished, resolved, settings, directory.path, stop)
        directory.write(FILE, found)
    return Transferred(directory=directory.path, transfer=found, fresh=True)


def _require_own_weights(finished: ReopenedRun) -> None:
    """Raises UsageError unless each task has weights of its own, which its name selects."""
    spec, traits = finished.resolved.spec, finished.resolved.method.traits
    name = finished.run.name
    if Trait.LABEL_FREE in traits:
        raise UsageError(
            f"{name}: {spec.method.name} chooses weights from the prompt, so no task has its own to transfer"
        )
    if Trait.ROUTED not in traits:
        raise UsageError(
            f"{name}: {spec.method.name} has no weights of one task alone. Give a run of a method with an adapter "
            "or a gate for each task"
        )
    if spec.clusters is not None:
        raise UsageError(f"{name} has one adapter for each cluster of tasks: give a run without --clusters")
    if len(spec.suite.tasks) < 2:
        raise UsageError(f"{name} has one task: give a run with several")


def _evaluate(
    finished: ReopenedRun, resolved: Resolved, settings: EvaluationSettings, folder: Path, stop: StopFlag
) -> Transfer:
    prepared = load(finished.run, resolved, train_examples(resolved))
    examples = RunData(spec=resolved.spec, suite=resolved.suite, evaluated=resolved.evaluated.with_examples())
    tasks = tuple(resolved.evaluated.by_task)

    def scores(part: Path, how: Answering) -> Scores:
        run = RunDirectory(folder / part)
        writer = PredictionWriter(run=run, examples={task: resolved.evaluated.of(task) for task in tasks})
        predict_with_model(how, writer, stop)
        return scores_of(run, examples, finished.record.n_train).scores

    try:
        LOG.info("base model")
        base = scores(Path("base"), _base_model(resolved, prepared))
        adapters = {}
        for number, owner in enumerate(tasks, start=1):
            LOG.info("weights of %s (%d of %d)", owner, number, len(tasks))
            routes = FixedRoute(prepared.routes.tasks, owner)
            own = answering(resolved, dataclasses.replace(prepared, routes=routes))
            adapters[owner] = scores(Path("adapters") / owner.replace("/", "_"), own)
    finally:
        prepared.adapter.detach()
    return Transfer(settings=settings, tasks=tasks, adapters=adapters, base=base)


def _base_model(resolved: Resolved, prepared: Prepared) -> Answering:
    """How the base model answers, with the same batches and limits."""
    routing, size = BaseRouting(prepared.adapter.off), resolved.spec.eval.batch_tokens
    generator = Generator(prepared.loaded, routing, prepared.routes, folds=False, batch_tokens=size)
    return Answering(generator=generator, encoder=prepared.encoder, tasks=resolved.suite.tasks)
