"""Learning rates: every one of a grid is tried on dev with one seed, and the grid is kept beside what it decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import RootModel, ValidationError

from harness.errors import NotFinite, StoreError
from harness.store.files import write_atomic
from harness.store.record import Frozen
from harness.store.run_directory import RunDirectory, State

FILE: Final = "tuning.json"


_ALL: Final = "tune.json"


class Tried(Frozen):
    """One learning rate. mean: on dev; None where training diverged. run: its directory's name."""

    lr: float
    mean: float | None
    run: str


class Tuning(Frozen):
    """A grid of learning rates. chosen: the best mean, of equal ones the smallest; None where all diverged."""

    label: str
    split: str
    seed: int
    grid: tuple[Tried, ...]
    chosen: float | None

    @property
    def at_the_edge(self) -> bool:
        """Whether the smallest or the largest rate was the best, so that one beyond it may be better."""
        rates = [tried.lr for tried in self.grid]
        return self.chosen is not None and self.chosen in (min(rates), max(rates))


class Tunings(RootModel[dict[str, list[Tuning]]]):
    """tune.json: every grid by leaderboard."""


def tuning_of(label: str, runs: Mapping[float, RunDirectory], split: str, seed: int) -> Tuning | None:
    """The grid as its runs (by learning rate) say; None while one is missing."""
    tried = []
    for lr, run in sorted(runs.items()):
        if run.state() is not State.DONE and not diverged(run):
            return None
        tried.append(Tried(lr=lr, mean=_mean(run), run=run.name))
    known = [t for t in tried if t.mean is not None]
    best = max(known, key=lambda t: (t.mean or 0.0, -t.lr), default=None)
    return Tuning(label=label, split=split, seed=seed, grid=tuple(tried), chosen=None if best is None else best.lr)


def diverged(run: RunDirectory) -> bool:
    """True where training stopped by itself (a loss that is not finite): a result, and not tried again."""
    failure = run.failure()
    return failure is not None and failure.stage == "train" and failure.error == NotFinite.__name__


def keep(run: RunDirectory, tuning: Tuning) -> None:
    """Write the grid into the directory of a run that it decided, where it is not there already."""
    if read_tuning(run) != tuning:
        run.write(FILE, tuning)


def read_tuning(run: RunDirectory) -> Tuning | None:
    """The grid that decided a run's learning rate; None where nobody tuned it. Raises: StoreError."""
    path = run.path / FILE
    try:
        return Tuning.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise StoreError(f"{path} is damaged. Delete it, and give the harness sweep command again.") from error


def keep_all(out: Path, board: str, tunings: Sequence[Tuning]) -> None:
    """Write a leaderboard's grids into the folder's tune.json; those of other leaderboards stay."""
    path = out / _ALL
    try:
        known = dict(Tunings.model_validate_json(path.read_bytes()).root)
    except (FileNotFoundError, ValidationError):
        known = {}
    if known.get(board, []) != list(tunings):
        made = Tunings({**known, board: list(tunings)})
        write_atomic(path, (made.model_dump_json(indent=1) + "\n").encode())


def _mean(run: RunDirectory) -> float | None:
    scores = run.scores()
    if scores is None or not scores.root:
        return None
    return next(iter(scores.root.values())).mean
