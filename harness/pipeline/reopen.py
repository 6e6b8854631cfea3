"""A finished run opened again: every choice is resolved and compared with the record, then model and adapter load."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.clusters import clusters_of
from harness.config.request import Request, merge
from harness.config.spec import DataSpec, EvalConfig, RunSpec
from harness.config.suites import open_recorded, suite_of
from harness.data.splits import Choice, SplitExamples, Use, load_split, locate_data
from harness.errors import DataError, ModelError, StoreError, UsageError, unknown
from harness.method import Baseline
from harness.pipeline.prepare import Base, Prepared, load_base, open_adapter, train_examples
from harness.pipeline.resolve import Resolved, resolve
from harness.registry import list_command
from harness.store.finished import open_finished
from harness.store.record import RunRecord
from harness.store.run_directory import RunDirectory
from harness.task import Suite

if TYPE_CHECKING:
    from harness.runtime.distributed import ProcessGroup


@dataclass(frozen=True, kw_only=True)
class ReopenedRun:
    """A finished run with its data, method and suite found again. The base model is not loaded yet."""

    run: RunDirectory
    record: RunRecord
    resolved: Resolved


def reopen(
    path: Path, data: str | None = None, model: str | None = None, *, data_option: str = "--data"
) -> ReopenedRun:
    """Open a finished run and check that its data, model and method are still those that it used.

    Args:
        data, model: their current locations, if they have moved.
        data_option: the option of the command that gives the location of the data, for errors.

    Raises: StoreError if the run is not finished; DataError or ModelError if data or model have changed.
    """
    finished = open_finished(path)
    run, record = finished.run, finished.record
    request = request_of_run(run, data, model, data_option=data_option)
    # The adapter of a finished run already holds what came from its parent, which may have been deleted.
    alone = {name: value for name, value in request.options.items() if name != "from"}
    resolved = resolve(dataclasses.replace(request, options=alone), open_recorded(record.spec.suite))
    _check_same(run, record.spec, resolved, data_option)
    # The same data may have a fingerprint of an older form in the record; the run keeps its identity.
    spec = resolved.spec.model_copy(update={"parent": record.spec.parent, "data": record.spec.data})
    return ReopenedRun(run=run, record=record, resolved=dataclasses.replace(resolved, spec=spec))


def load(run: RunDirectory, resolved: Resolved, train: SplitExamples | None, task: str | None = None) -> Prepared:
    """The base model with the run's adapter on it, ready to generate.

    Args:
        resolved: of the run, or with other ``eval`` keys, examples and inference fields; its tasks must be the run's.
        train: as ``train_examples`` gives them.
        task: whose cluster's adapter; needed where the run has clusters.

    Raises: UsageError for a run without a model of its own, or an unknown or missing task; StoreError for a damaged
        adapter.
    """
    clusters = clusters_of(resolved.spec)
    if task is not None and task not in resolved.spec.suite.tasks:
        raise unknown("task", task, resolved.spec.suite.tasks, see=list_command(resolved.spec.suite.name))
    if task is None and len(clusters) > 1:
        names = ", ".join(resolved.spec.suite.tasks)
        raise UsageError(f"{run.name} has one adapter for each cluster of tasks: name a task. Tasks: {names}")
    cluster = next(c for c in clusters if task is None or task in c.tasks)
    return open_adapter(run, resolved, base_of(run, resolved, train), cluster)


def base_of(
    run: RunDirectory, resolved: Resolved, train: SplitExamples | None, processes: ProcessGroup | None = None
) -> Base:
    """The base model without an adapter. processes: as in ``load_base``.

    Raises: UsageError for a run without a model of its own.
    """
    if resolved.model is None:
        raise UsageError(f"{run.name} has no model to load: its predictions come from {_predictor(resolved)}")
    return load_base(resolved, train, processes)


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A reopened run with its base model and the adapter of one cluster on it."""

    finished: ReopenedRun
    prepared: Prepared


def open_model(path: Path, data: str | None = None, model: str | None = None, task: str | None = None) -> OpenModel:
    """``reopen`` and ``load`` in one, with every setting as in the run."""
    finished = reopen(path, data, model)
    prepared = load(finished.run, finished.resolved, train_examples(finished.resolved), task)
    return OpenModel(finished=finished, prepared=prepared)


def _predictor(resolved: Resolved) -> str:
    spec = resolved.spec
    return f"the method {spec.method.name}" if isinstance(resolved.method, Baseline) else spec.backend


def _check_same(run: RunDirectory, then: RunSpec, resolved: Resolved, data_option: str) -> None:
    """An adapter can only be used with the base model, tasks and method that it was trained with."""
    now = resolved.spec
    if not resolved.suite.same_data(then.data.fingerprints, now.data.fingerprints):
        raise _other_data(run, then.data, resolved.source, now.data, data_option)
    if then.clusters != now.clusters:
        raise StoreError(f"{run.name} used other clusters than its inputs.json states: repeat the run")
    if list(then.suite.tasks) != list(now.suite.tasks):
        raise DataError(
            f"{run.name} used the tasks {', '.join(then.suite.tasks)}, but in the installed version of the "
            f"suite its data have {', '.join(now.suite.tasks)}. Repeat the run"
        )
    if (then.model and then.model.fingerprint) != (now.model and now.model.fingerprint):
        raise ModelError(
            f"{resolved.model} is not the model that {run.name} used ({then.model and then.model.label}): the "
            "hashes of their files differ. Give the right --model"
        )
    if then.method.files != now.method.files:
        raise StoreError(
            f"the content of the folders that {run.name} used has changed ({', '.join(then.method.files)}): "
            "restore them, or repeat the run"
        )
    if (then.method.version, then.method.deciding()) != (now.method.version, now.method.deciding()):
        raise StoreError(
            f"{run.name} used version {then.method.version} of {then.method.name}, but version "
            f"{now.method.version} is installed: repeat the run, or install the version of mtlora-harness that its "
            "record names"
        )


def request_of_run(
    run: RunDirectory, data: str | None = None, model: str | None = None, *, data_option: str = "--data"
) -> Request:
    """The request of a run, with ``data`` and ``model`` if they have moved. Raises: StoreError."""
    try:
        saved = json.loads(run.inputs.read_bytes())
        request = Request(options=saved["options"], keys=saved["keys"])
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{run.inputs} cannot be read ({error}): run its `harness run` command again") from error
    recorded = request.options.get("data")
    if data is None and recorded and Path(recorded).is_absolute() and not Path(recorded).exists():
        raise DataError(
            f"the data of {run.name} were in {recorded}, which no longer exists. If they have moved, give their new "
            f"location with {data_option}"
        )
    return merge(request, Request(options={"data": data, "model": model}))


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The inputs for scoring a run's predictions: its spec, its suite, and the examples that were evaluated."""

    spec: RunSpec
    suite: Suite
    evaluated: SplitExamples


def data_of_run(run: RunDirectory, data: str | None = None, config: EvalConfig | None = None) -> RunData:
    """The examples that a run has evaluated; no model and no method is needed.

    Args:
        data: the current location of the data, if they have moved.
        config: of another evaluation than the run's own.

    Raises: DataError if the data have changed since the run; StoreError without a spec.
    """
    return data_at(run, request_of_run(run, data).options.get("data"), config)


def data_at(run: RunDirectory, data: str | None, config: EvalConfig | None = None) -> RunData:
    """``data_of_run`` for a run without inputs.json (a published record). data: None for the embedded sample."""
    spec = run.spec()
    if spec is None:
        raise StoreError(f"{run.path} is not a run: it has no spec.json. See: harness runs")
    found = locate_data(suite_of(spec.suite), data)
    suite = found.suite
    if not suite.same_data(spec.data.fingerprints, found.spec.fingerprints):
        raise _other_data(run, spec.data, found.source, found.spec)
    config = config or spec.eval
    tasks, use = list(spec.suite.tasks), Use(withheld=True)
    examples = load_split(suite, found.source, config.split, tasks, Choice.of(config), use=use)
    return RunData(spec=spec, suite=suite, evaluated=examples.with_examples())


def _other_data(
    run: RunDirectory, recorded: DataSpec, source: str, present: DataSpec, data_option: str = "--data"
) -> DataError:
    """The error for data that are not the run's: the parts that differ, and the recorded revision, if there is one."""
    then, now = recorded.fingerprints, present.fingerprints
    names = ", ".join(name for name in sorted({*then, *now}) if then.get(name) != now.get(name))
    revision = f", for a data set of the hub ID@{then['revision']}" if "revision" in then else ""
    return DataError(
        f"{source} is not the data that {run.name} used ({names} differ): give the right {data_option}{revision}"
    )
