"""A finished run opened again: every choice resolved anew and compared with the record, then model and adapter."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from harness.config.clusters import clusters_of
from harness.config.keys import build
from harness.config.request import Request, merge
from harness.config.spec import EvalConfig, RunSpec
from harness.data.rows import Rows, group, locate_data
from harness.errors import DataError, ModelError, StoreError, UsageError, unknown
from harness.method import Baseline
from harness.pipeline.prepare import Base, Prepared, load_base, open_adapter, train_rows
from harness.pipeline.resolve import Resolved, resolve
from harness.registry import suite_class
from harness.store.record import RunRecord
from harness.store.run_directory import RunDirectory, open_run
from harness.task import Suite


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished run and what it was made of, found again. Nothing heavy is loaded yet."""

    run: RunDirectory
    record: RunRecord
    resolved: Resolved


def find(path: Path, data: str | None = None, model: str | None = None) -> Finished:
    """Open a finished run.

    Args: data, model: where these are now, when they have moved.
    Raises: StoreError for what is no finished run; DataError or ModelError where data or model are others by now.
    """
    run = open_run(path)
    record = run.record()
    if record is None:
        raise StoreError(f"{run.path} is not finished ({run.state().value}): give its harness run command again first")
    request = of_run(run, data, model)
    # What a finished run went on from is in its adapter; the other run may be gone.
    alone = {name: value for name, value in request.options.items() if name != "from"}
    resolved = resolve(dataclasses.replace(request, options=alone))
    spec = resolved.spec.model_copy(update={"parent": record.spec.parent})
    resolved = dataclasses.replace(resolved, spec=spec)
    _check_same(run, record.spec, resolved)
    return Finished(run=run, record=record, resolved=resolved)


def load(run: RunDirectory, resolved: Resolved, train: Rows | None, task: str | None = None) -> Prepared:
    """The base model with the run's adapter on it, ready to generate.

    Args:
        resolved: of the run, or with other ``eval`` keys, rows and inference fields; its tasks must be the run's.
        train: as ``train_rows`` gives them.
        task: whose cluster's adapter; needed where the run has clusters.

    Raises: UsageError for a run without a model of its own, or an unknown or missing task; StoreError for a damaged
        adapter.
    """
    clusters = clusters_of(resolved.spec)
    if task is not None and task not in resolved.spec.suite.tasks:
        raise unknown("task", task, resolved.spec.suite.tasks, see=f"harness list {resolved.spec.suite.name}")
    if task is None and len(clusters) > 1:
        names = ", ".join(resolved.spec.suite.tasks)
        raise UsageError(f"{run.name} has an adapter for each cluster of tasks: name a task. Tasks: {names}")
    cluster = next(c for c in clusters if task is None or task in c.tasks)
    return open_adapter(run, resolved, base_of(run, resolved, train), cluster)


def base_of(run: RunDirectory, resolved: Resolved, train: Rows | None) -> Base:
    """The base model alone. Raises: UsageError for a run without a model of its own."""
    if resolved.model is None:
        raise UsageError(f"{run.name} has no model of its own to load: its answers come from {_answering(resolved)}")
    return load_base(resolved, train)


def open_model(
    path: Path, data: str | None = None, model: str | None = None, task: str | None = None
) -> tuple[Finished, Prepared]:
    """``find`` and ``load`` in one, with everything as it was in the run."""
    finished = find(path, data, model)
    return finished, load(finished.run, finished.resolved, train_rows(finished.resolved), task)


def _answering(resolved: Resolved) -> str:
    spec = resolved.spec
    return f"the method {spec.method.name}" if isinstance(resolved.method, Baseline) else spec.backend


def _check_same(run: RunDirectory, then: RunSpec, resolved: Resolved) -> None:
    """An adapter means something on its own base model, tasks and method alone."""
    now = resolved.spec
    if then.data.fingerprints != now.data.fingerprints:
        raise DataError(f"{resolved.source} is not what {run.name} was made with: give the right --data")
    if then.clusters != now.clusters:
        raise StoreError(f"{run.name} was made with other clusters of tasks than its inputs.json says: make it again")
    if list(then.suite.tasks) != list(now.suite.tasks):
        raise DataError(
            f"{run.name} was made with the tasks {', '.join(then.suite.tasks)}; by the suite's present version its "
            f"data have {', '.join(now.suite.tasks)}. Make the run again"
        )
    if (then.model and then.model.fingerprint) != (now.model and now.model.fingerprint):
        raise ModelError(
            f"{resolved.model} is not the model that {run.name} was made with ({then.model and then.model.label}; its "
            "files have another hash): give the right --model"
        )
    if then.method.files != now.method.files:
        raise StoreError(f"{run.name} was made with folders of another content ({', '.join(then.method.files)})")
    if (then.method.version, then.method.deciding()) != (now.method.version, now.method.deciding()):
        raise StoreError(
            f"{run.name} was made with version {then.method.version} of {then.method.name}, and installed is version "
            f"{now.method.version}: make the run again, or install the version of harness that its record names"
        )


def of_run(run: RunDirectory, data: str | None = None, model: str | None = None) -> Request:
    """The request that made a run; ``data`` and ``model`` where these have moved. Raises: StoreError."""
    try:
        saved = json.loads((run.path / "inputs.json").read_bytes())
        request = Request(options=saved["options"], keys=saved["keys"])
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(
            f"{run.path / 'inputs.json'} cannot be read ({error}): give the harness run command again"
        ) from error
    return merge(request, Request(options={"data": data, "model": model}))


def rows_of(
    run: RunDirectory, data: str | None = None, config: EvalConfig | None = None
) -> tuple[RunSpec, Suite, Rows]:
    """The spec, the suite and the evaluated rows of a run.

    Args:
        data: where the data are now, when they have moved.
        config: of another evaluation than the run's own.

    Raises: DataError when they are no longer the data that the run was made with; StoreError without a spec.
    """
    return rows_at(run, of_run(run, data).options.get("data"), config)


def rows_at(run: RunDirectory, data: str | None, config: EvalConfig | None = None) -> tuple[RunSpec, Suite, Rows]:
    """``rows_of`` where nothing but ``data`` says where the data are; None: the embedded sample."""
    spec = run.spec()
    if spec is None:
        raise StoreError(f"{run.path} is no run (it has no spec.json). See: harness runs")
    suite = build(suite_class(spec.suite.name), spec.suite.fields, "suite")
    source, found = locate_data(suite, data)
    if found.fingerprints != spec.data.fingerprints:
        changed = sorted(set(found.fingerprints.items()) ^ set(spec.data.fingerprints.items()))
        names = ", ".join(dict.fromkeys(name for name, _ in changed))
        raise DataError(f"{source} is not what {run.name} was made with ({names} differ): give the right --data")
    config = config or spec.eval
    rows = group(suite.read(source, config.split), config.split, list(spec.suite.tasks), config.per_task)
    return spec, suite, dataclasses.replace(rows, by_task={t: i for t, i in rows.by_task.items() if len(i)})
