"""Learning-rate search: every rate of a grid is tried on dev with one seed, and the results are kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import RootModel, ValidationError

from harness.errors import NotFinite, StoreError
from harness.store.files import write_atomic
from harness.store.record import Frozen
from harness.store.run_directory import RunDirectory, State
from harness.task import MIN_EXAMPLES

LOG: Final = logging.getLogger(__name__)
FILE: Final = "tuning.json"  # in a run's directory
_ALL: Final = "tune.json"  # in the folder of runs


class Tried(Frozen):
    """One learning rate. mean: the score on dev; None if training diverged. run: the name of its directory."""

    lr: float
    mean: float | None
    run: str


class Tuning(Frozen):
    """A finished search. chosen: the rate with the best mean, the smallest of equal ones; None if all diverged."""

    label: str
    split: str
    seed: int
    grid: tuple[Tried, ...]
    chosen: float | None

    @property
    def at_the_edge(self) -> bool:
        """Whether the smallest or the largest rate was the best, so that a rate outside the grid may be better."""
        rates = [tried.lr for tried in self.grid]
        return self.chosen is not None and self.chosen in (min(rates), max(rates))


class Tunings(RootModel[dict[str, list[Tuning]]]):
    """tune.json: every search by leaderboard."""


def tuning_of(label: str, runs: Mapping[float, RunDirectory], split: str, seed: int) -> Tuning | None:
    """The search, from its runs by learning rate; None while one of them is not finished."""
    tried = []
    for lr, run in sorted(runs.items()):
        if run.state() is not State.DONE and not diverged(run):
            return None
        tried.append(Tried(lr=lr, mean=_mean(run), run=run.name))
    scored = [t for t in tried if t.mean is not None]
    best = max(scored, key=lambda t: (t.mean or 0.0, -t.lr), default=None)
    return Tuning(label=label, split=split, seed=seed, grid=tuple(tried), chosen=None if best is None else best.lr)


def diverged(run: RunDirectory) -> bool:
    """True if the loss became infinite or nan. This is a result of the search, so the run is not repeated."""
    failure = run.failure()
    return failure is not None and failure.stage == "train" and failure.error == NotFinite.__name__


def keep(run: RunDirectory, tuning: Tuning) -> None:
    """Store a search in the directory of a run whose learning rate it decided."""
    if read_tuning(run) != tuning:
        run.write(FILE, tuning)


def read_tuning(run: RunDirectory) -> Tuning | None:
    """The search that decided a run's learning rate; None if it was not tuned. Raises: StoreError."""
    path = run.path / FILE
    try:
        return Tuning.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise StoreError(f"{path} is damaged. Delete it and run the harness sweep command again.") from error


def keep_all(out: Path, board: str, tunings: Sequence[Tuning]) -> None:
    """Store a leaderboard's searches in the folder's tune.json; those of other leaderboards stay."""
    path = out / _ALL
    try:
        stored = dict(Tunings.model_validate_json(path.read_bytes()).root)
    except FileNotFoundError:
        stored = {}
    except ValidationError:
        LOG.warning("%s is damaged and is written again: it lists this leaderboard's learning-rate searches only", path)
        stored = {}
    if stored.get(board, []) != list(tunings):
        updated = Tunings({**stored, board: list(tunings)})
        write_atomic(path, (updated.model_dump_json(indent=1) + "\n").encode())


def _mean(run: RunDirectory) -> float | None:
    """The run's mean on dev; over all of its tasks where some of them have too few examples for a reported mean.

    A choice between learning rates needs less certainty than a score that is reported.
    """
    scores = run.scores()
    if scores is None or not scores.root:
        return None
    table = next(iter(scores.root.values()))
    values = [task.value for task in table.tasks.values() if task.value is not None]
    if table.mean is not None or not values:
        return table.mean
    LOG.warning(
        "some tasks have fewer than %d dev examples: learning rates are compared by the mean over all %d tasks",
        MIN_EXAMPLES,
        len(values),
    )
    return sum(values) / len(values)
