"""The record of a search for learning rates, and of other fields that were chosen with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import JsonValue, RootModel, ValidationError

from harness.errors import StoreError
from harness.store.files import write_atomic
from harness.store.record import Frozen
from harness.store.run_directory import RunDirectory

LOG: Final = logging.getLogger(__name__)
LR: Final = "train.lr"
FILE: Final = "tuning.json"  # in a run's directory
_ALL: Final = "tune.json"  # in the folder of runs


class Tried(Frozen):
    """One point of the grid. others: the values of further fields, by key.

    mean: the score on dev, averaged over the seeds; None if training diverged. run: the directory's name of one seed.
    """

    lr: float
    others: dict[str, JsonValue] = {}
    mean: float | None
    run: str


class Tuning(Frozen):
    """A finished search.

    seed: the first of ``seeds``. chosen: the rate of the point with the best mean; None if all points diverged.
    chosen_others: the further fields of that point. open_ends: the keys whose best value is the smallest or the largest
    that was tried, and not next to one that diverged; None in a search that was recorded before grids grew.
    """

    label: str
    split: str
    seed: int
    seeds: tuple[int, ...] = ()
    grid: tuple[Tried, ...]
    chosen: float | None
    chosen_others: dict[str, JsonValue] = {}
    open_ends: tuple[str, ...] | None = None

    @property
    def at_the_edge(self) -> bool:
        """Whether a value outside the grid may be better than the chosen one, so that no verdict rests on the run."""
        if self.open_ends is not None:
            return bool(self.open_ends)
        rates = [tried.lr for tried in self.grid]
        return self.chosen is not None and self.chosen in (min(rates), max(rates))


class Tunings(RootModel[dict[str, list[Tuning]]]):
    """tune.json: every search by leaderboard."""


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
