"""Score again what a run has already answered: its data and its predictions, no model."""

from __future__ import annotations

from pathlib import Path

from harness.config.spec import RunSpec
from harness.data.rows import Rows
from harness.pipeline.reopen import rows_of
from harness.scoring.score import Scored, score_predictions, write_scored
from harness.store.record import RunRecord
from harness.store.run_directory import RunDirectory, open_run
from harness.task import MIN_EXAMPLES, Suite


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
        min_examples=1 if spec.data.sample else MIN_EXAMPLES,
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
