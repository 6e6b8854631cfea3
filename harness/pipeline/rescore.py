"""Score the predictions of a run again; needs its data and its predictions, but no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.pipeline.reopen import RunData, data_at, data_of_run
from harness.scoring.score import Scored, score_predictions, write_scored
from harness.store.record import RunRecord
from harness.store.run_directory import RunDirectory, open_run
from harness.task import MIN_EXAMPLES


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """New scores. record: of the run that they belong to; None if it is not finished."""

    scored: Scored
    record: RunRecord | None


def score(run: RunDirectory, data: RunData, n_train: Mapping[str, int] | None) -> Scored:
    """Score a run's predictions under every protocol, and write scores and bootstrap draws into its directory."""
    scored = scores_of(run, data, n_train)
    write_scored(run, scored)
    return scored


def scores_of(run: RunDirectory, data: RunData, n_train: Mapping[str, int] | None) -> Scored:
    """``score`` without writing anything. Predictions for examples without a target are ignored."""
    predictions = run.predictions(data.evaluated.by_task)
    for task, indices in data.evaluated.blank.items():
        blank = {example.id for example in data.evaluated.at(indices)}
        if blank and task in predictions:
            predictions[task] = [p for p in predictions[task] if p.id not in blank]
    return score_predictions(
        data.suite,
        {t: data.evaluated.of(t) for t in data.evaluated.by_task},
        predictions,
        n_train=n_train,
        min_examples=1 if data.spec.data.sample and not data.suite.sample_is_benchmark else MIN_EXAMPLES,
    )


def rescore(path: Path, data: str | None = None) -> Rescored:
    """Parse and score the predictions of a run, or of one of its ``evaluations/``, again (after a parser has changed).

    Those of a published record are scored without changing its files.

    Raises: StoreError for a folder that is neither, or for a record that has only hashes of its predictions.
    """
    evaluation = RunDirectory(path).evaluation()
    if evaluation is not None:
        owner = open_run(path.resolve().parent.parent)
        examples = data_of_run(owner, data, evaluation.settings.eval)
        return Rescored(scored=score(RunDirectory(path), examples, evaluation.n_train), record=owner.record())
    run = open_run(path)
    record = run.record()
    n_train = record.n_train if record is not None else None
    if run.is_published:
        return Rescored(scored=scores_of(run, data_at(run, data), n_train), record=record)
    scored = score(run, data_of_run(run, data), n_train)
    return Rescored(scored=scored, record=record)
