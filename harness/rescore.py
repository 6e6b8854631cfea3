"""Score again what a run has already answered: its data and its predictions, no model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness.data import Rows, group
from harness.errors import DataError, StoreError
from harness.inputs import of_run
from harness.record import RunRecord
from harness.registry import suite_class
from harness.resolve import build, locate_data
from harness.score import MIN_ROWS, Scored, score_predictions, write_scored
from harness.spec import EvalConfig, RunSpec
from harness.store import RunDirectory, open_run
from harness.task import Suite


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


def score(run: RunDirectory, spec: RunSpec, suite: Suite, rows: Rows, n_train: dict[str, int] | None) -> Scored:
    """Score a run's predictions under every protocol and write what follows from them."""
    scored = scores_of(run, spec, suite, rows, n_train)
    write_scored(run, scored)
    return scored


def scores_of(run: RunDirectory, spec: RunSpec, suite: Suite, rows: Rows, n_train: dict[str, int] | None) -> Scored:
    """``score`` without writing anything."""
    return score_predictions(
        suite,
        {t: rows.of(t) for t in rows.by_task},
        {t: run.predictions(t) for t in rows.by_task},
        n_train=n_train,
        min_rows=1 if spec.data.sample else MIN_ROWS,
    )


def rescore(path: Path, data: str | None = None) -> tuple[Scored, RunRecord | None]:
    """Parse and score the texts of a run, or of one of its ``evaluations/``, again (after a parser's change, say).

    Returns: the scores, and the record of a finished run.
    Raises: StoreError for a folder that is neither.
    """
    evaluation = RunDirectory(path).evaluation()
    if evaluation is not None:
        owner, again = open_run(path.resolve().parent.parent), RunDirectory(path)
        return score(again, *rows_of(owner, data, evaluation.settings.eval), evaluation.n_train), owner.record()
    run = open_run(path)
    record = run.record()
    return score(run, *rows_of(run, data), record.n_train if record is not None else None), record
