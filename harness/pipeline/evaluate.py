"""A finished run evaluated again, on another split or with another inference setting: nothing is trained.

Results have a directory of their own inside the run, ``evaluations/<hash of the settings>/``: settings.json,
predictions/, evaluation.json and, last, scores.json. The run's own files stay as they are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.keys import build_from_keys, section_config
from harness.config.spec import EvalConfig
from harness.data.splits import Choice, Use, load_split
from harness.errors import UsageError, unknown
from harness.method import Method
from harness.pipeline.predict import predict_all
from harness.pipeline.prepare import train_examples
from harness.pipeline.reopen import ReopenedRun, RunData, base_of, reopen
from harness.pipeline.rescore import score
from harness.pipeline.resolve import Resolved
from harness.runtime.signals import StopFlag, stop_gracefully
from harness.store.provenance import gather
from harness.store.record import Evaluation, EvaluationSettings, Scores
from harness.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from harness.runtime.distributed import ProcessGroup


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation that is done. fresh: False where it had been done before."""

    directory: RunDirectory
    evaluation: Evaluation
    scores: Scores
    fresh: bool


def evaluate_again(
    path: Path, keys: Mapping[str, Any], *, data: str | None = None, model: str | None = None
) -> Evaluated | None:
    """Evaluate a finished run; the same call again resumes, and does nothing when all is done.

    Under torchrun every process calls this and generates its share; rank 0 scores, and the others return None.

    Args:
        keys: ``eval.*``, and ``method.*`` for the method's inference fields; what is not given is as in the run.
        data, model: their current locations, if they have moved.

    Raises: UsageError for a key that cannot change without training; RunLocked; Interrupted; errors of
        ``harness.pipeline.reopen``.
    """
    from harness.runtime.distributed import join

    finished = reopen(path, data, model)
    resolved, settings = changed_evaluation(finished, keys, "harness evaluate")
    directory = finished.run.evaluation_directory(settings_key(settings))
    processes = join()
    with directory.lock() if processes.is_main else nullcontext(), stop_gracefully() as stop:
        evaluation = processes.broadcast(directory.evaluation() if processes.is_main else None)
        fresh = evaluation is None
        if evaluation is None and (processes.is_main or resolved.model is not None):
            if processes.is_main:
                directory.write("settings.json", settings)
            evaluation = _evaluate(finished, resolved, settings, directory, stop, processes)
            processes.leave()
        if evaluation is None or not processes.is_main:
            return None
        if fresh:
            directory.write("evaluation.json", evaluation)
        scores = directory.scores()
        if scores is None:
            examples = RunData(spec=resolved.spec, suite=resolved.suite, evaluated=resolved.evaluated.with_examples())
            scores = score(directory, examples, evaluation.n_train).scores
    return Evaluated(directory=directory, evaluation=evaluation, scores=scores, fresh=fresh)


def to_json(evaluated: Evaluated) -> dict[str, Any]:
    """The output of ``--json``; ``record`` is evaluation.json."""
    return {
        "directory": str(evaluated.directory.path),
        "record": evaluated.evaluation.model_dump(mode="json"),
        "scores": evaluated.scores.model_dump(mode="json"),
    }


def _evaluate(
    finished: ReopenedRun,
    resolved: Resolved,
    settings: EvaluationSettings,
    directory: RunDirectory,
    stop: StopFlag,
    processes: ProcessGroup,
) -> Evaluation:
    from harness.runtime.distributed import SINGLE_PROCESS

    started = datetime.now(UTC)
    train = train_examples(resolved)
    base = base_of(finished.run, resolved, train, processes) if resolved.model is not None else None
    sharing = SINGLE_PROCESS if base is None else processes
    predicted = predict_all(finished.run, resolved, base, train, stop, directory, sharing)
    about: dict[str, Any] = {"label": resolved.spec.data.label, **resolved.suite.describe(resolved.source)}
    machine: dict[str, Any] = {}
    if base is not None:
        about["limits"] = dict(base.encoder.limits)
        machine = {"dtype": str(base.loaded.dtype), "device": str(base.loaded.device)}
    return Evaluation(
        settings=settings,
        generation=predicted.generation,
        provenance=gather(about, machine),
        n_train=finished.record.n_train,
        sample=finished.record.sample,
        started_at=started,
        finished_at=datetime.now(UTC),
    )


@dataclass(frozen=True, kw_only=True)
class ChangedSettings:
    """Settings of an evaluation that needs no training. fields: the inference fields that differ from the run's."""

    eval: EvalConfig
    method: Method
    fields: Mapping[str, Any]


def changed_settings(before: Resolved, keys: Mapping[str, Any], command: str) -> ChangedSettings:
    """A run's settings with other ``eval.*`` keys and inference fields of the method.

    Args: command: the user's, for errors.
    Raises: UsageError for a key that cannot change without training.
    """
    tables: dict[str, dict[str, Any]] = {"eval": {}, "method": {}}
    for key, value in keys.items():
        section, _, name = key.partition(".")
        if section not in tables:
            raise UsageError(f"{key} cannot change without training: {command} takes eval.* and method.* keys")
        tables[section][name] = value
    config = section_config(EvalConfig, "eval", {**before.spec.eval.model_dump(), **tables["eval"]})
    method = _with_fields(before.method, tables["method"])
    fields = {n: v for n, v in tables["method"].items() if getattr(method, n) != getattr(before.method, n)}
    return ChangedSettings(eval=config, method=method, fields=fields)


def changed_evaluation(
    finished: ReopenedRun, keys: Mapping[str, Any], command: str
) -> tuple[Resolved, EvaluationSettings]:
    """The run as resolved, with other evaluation keys, examples and inference fields; arguments and errors as above."""
    before = finished.resolved
    changed = changed_settings(before, keys, command)
    config = changed.eval
    hint = "Choose another one with --split"
    tasks = list(before.evaluated.by_task)
    use = Use(strict=before.all_tasks, withheld=True)
    examples = load_split(before.suite, before.source, config.split, tasks, Choice.of(config), hint=hint, use=use)
    spec = before.spec.model_copy(update={"eval": config})
    settings = EvaluationSettings(
        run_id=finished.record.run_id, eval=config, method=dict(changed.fields), suite=spec.suite
    )
    return dataclasses.replace(before, spec=spec, method=changed.method, evaluated=examples), settings


def _with_fields(method: Method, values: Mapping[str, Any]) -> Method:
    known = {f.name for f in dataclasses.fields(method)}
    for name in values:
        if name not in known:
            raise unknown("key", f"method.{name}", [f"method.{k}" for k in known], see="harness list METHOD")
        if name not in method.inference_fields:
            free = ", ".join(f"method.{n}" for n in sorted(method.inference_fields)) or "none"
            raise UsageError(
                f"method.{name} changes training, so it needs a run of its own (harness run). Fields of this method "
                f"that change only predictions: {free}"
            )
    return build_from_keys(type(method), {**dataclasses.asdict(method), **values}, "method")


def settings_key(settings: EvaluationSettings) -> str:
    """The name of the folder of an evaluation with these settings."""
    content = json.dumps(settings.model_dump(mode="json", exclude_defaults=True), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:8]
