"""The result of a search for learning rates, from its runs on dev."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from pydantic import JsonValue

from harness.errors import NotFinite, StoreError
from harness.store.run_directory import RunDirectory, State
from harness.store.tuning import Tried, Tuning
from harness.sweep.search import Point, Results, Search
from harness.task import MIN_EXAMPLES

LOG: Final = logging.getLogger(__name__)
Runs = Mapping[Point, Sequence[RunDirectory]]  # by point, the run of each seed


@dataclass(frozen=True, kw_only=True)
class TuningData:
    """What the points of a search are compared on: the split, and the seeds of their runs."""

    split: str
    seeds: tuple[int, ...]


def results_of(runs: Runs) -> Results | None:
    """The mean of every point over its seeds, None if one diverged; no results while a run is not finished.

    Raises: StoreError for a finished run without any score.
    """
    results: dict[Point, float | None] = {}
    for point, of_point in runs.items():
        if any(diverged(run) for run in of_point):
            results[point] = None
            continue
        if any(run.state() is not State.DONE for run in of_point):
            return None
        means = [_mean(run) for run in of_point]
        results[point] = sum(means) / len(means)
    return results


def tuning_of(label: str, search: Search, runs: Runs, data: TuningData) -> Tuning | None:
    """The search, from the runs of each point; None while a run is not finished."""
    results = results_of(runs)
    if results is None:
        return None
    best = search.best(results)
    tried = [
        Tried(lr=_rate(point), others=_others(search, point), mean=results[point], run=of_point[0].name)
        for point, of_point in runs.items()
    ]
    return Tuning(
        label=label,
        split=data.split,
        seed=data.seeds[0],
        seeds=data.seeds,
        grid=tuple(sorted(tried, key=lambda t: (str(t.others), t.lr))),
        chosen=None if best is None else _rate(best),
        chosen_others={} if best is None else _others(search, best),
        open_ends=search.open_ends(results),
    )


def diverged(run: RunDirectory) -> bool:
    """True if the loss became infinite or nan. This is a result of the search, so the run is not repeated."""
    failure = run.failure()
    return failure is not None and failure.stage == "train" and failure.error == NotFinite.__name__


def _rate(point: Point) -> float:
    return float(cast("float", point[0]))


def _others(search: Search, point: Point) -> dict[str, JsonValue]:
    """The fields besides the learning rate."""
    return {axis.key: value for axis, value in zip(search.axes[1:], point[1:], strict=True)}


def _mean(run: RunDirectory) -> float:
    """The run's mean on dev; over all of its tasks where some of them have too few examples for a reported mean.

    A choice between learning rates needs less certainty than a score that is reported.
    """
    scores = run.scores()
    table = None if scores is None or not scores.root else next(iter(scores.root.values()))
    values = [] if table is None else [task.value for task in table.tasks.values() if task.value is not None]
    if table is None or not values:
        raise StoreError(
            f"{run.path} has no scores, so that learning rates cannot be compared: harness score {run.path}"
        )
    if table.mean is not None:
        return table.mean
    LOG.warning(
        "some tasks have fewer than %d dev examples: learning rates are compared by the mean over all %d tasks",
        MIN_EXAMPLES,
        len(values),
    )
    return sum(values) / len(values)
