"""The types of a leaderboard's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from harness.config.spec import RunSpec
from harness.scoring.groups import Group
from harness.scoring.statistics import Estimate
from harness.scoring.verdict import Transfer
from harness.sweep.spec import BoardSpec, Orientation
from harness.sweep.tuning import Tuning

LIMITED: Final = "limited"  # trained or evaluated on some of the rows: shown, never ranked


class Kind(StrEnum):
    """What stands behind a row. Only trained rows are ranked."""

    TRAINED = "trained"
    UNTRAINED = "untrained"  # the base model as it is
    TRIVIAL = "trivial"  # no base model at all


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A headline, or the mean, over a row's seeds.

    estimate: None where the runs keep no draws. best: the best trained row of the column; tied: a trained row that is
    not shown to differ from it. no_train: the task had no training rows.
    """

    value: float | None
    estimate: Estimate | None
    sd: float | None
    best: bool = False
    tied: bool = False
    no_train: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method of a table. delta: to the method that an ablation belongs to. unparsed: share of answers by task."""

    group: Group
    label: str
    kind: Kind
    rank: int | None
    beneath: bool  # an ablation, beneath its method
    delta: Estimate | None
    mean: Cell
    cells: Mapping[str, Cell]
    unparsed: Mapping[str, float]
    flags: tuple[str, ...]  # "limited", ...: why the row is no full result
    tuning: Tuning | None = None  # the grid that decided the learning rate

    @property
    def seconds(self) -> float | None:
        """Training time of one seed, the mean over seeds; None where nothing was trained for this row alone."""
        return _mean([t.seconds if (t := r.record.training) is not None and t.steps else None for r in self.group.runs])

    @property
    def reused(self) -> bool:
        """Whether another run had already trained every stage."""
        steps = [None if r.record.training is None else r.record.training.steps for r in self.group.runs]
        return self.kind is Kind.TRAINED and all(n == 0 for n in steps)

    @property
    def tokens_per_second(self) -> float | None:
        """In training, the mean over seeds."""
        return _mean([None if (t := r.record.training) is None else t.tokens_per_second for r in self.group.runs])

    @property
    def memory(self) -> int | None:
        """The largest peak of training over the seeds, in bytes."""
        peaks = [t.peak_memory_bytes for r in self.group.runs if (t := r.record.training) is not None]
        return max((p for p in peaks if p is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that can be compared, best first. headlines: the metric's name by task."""

    spec: RunSpec  # of one of the runs: data, split, prompt, ...
    sample: bool
    tasks: tuple[str, ...]
    headlines: Mapping[str, str]
    mean_of: tuple[str, ...]
    rows: tuple[Row, ...]
    transfers: tuple[tuple[str, str, Transfer], ...]  # (row, reference, gains)
    sweeps: tuple[Sweep, ...] = ()
    noise: Noise | None = None


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A run that has no row, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Everything that ``harness leaderboard`` shows of a suite under one protocol."""

    suite: str
    protocol: str
    tables: tuple[Table, ...]
    unfinished: tuple[Unfinished, ...]
    elsewhere: tuple[Row, ...] = ()  # answered by a back end: for orientation
    file: BoardSpec | None = None  # what it compares, where a file says so

    @property
    def orientation(self) -> tuple[Orientation, ...]:
        """Figures from elsewhere."""
        return () if self.file is None else self.file.orientation


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration of a sweep. at: the grid's keys and values, as text."""

    at: Mapping[str, str]
    group: Group


def shown(key: str, value: str) -> str:
    """A value of a grid for people: no limit on the rows is all of them."""
    return value if value != "None" else "all" if key.endswith("per_task") else "none"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A method over a grid, in the file's order; points that have no run are left out."""

    name: str
    method: str
    keys: tuple[str, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The null row: a row's own method under other seeds. difference: null minus row, 0 in truth."""

    null: Group
    row: Group
    difference: Estimate | None
