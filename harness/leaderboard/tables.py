"""The types of a leaderboard: tables, rows, cells, transfer, sweeps and seed noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from harness.config.spec import RunSpec
from harness.config.template import template_in_words
from harness.reporting.numbers import counted
from harness.scoring.groups import SeedGroup
from harness.scoring.significance import Difference
from harness.scoring.statistics import Estimate, SeedVariance
from harness.scoring.verdict import Transfer
from harness.store.tuning import Tuning
from harness.sweep.spec import BoardSpec, Orientation
from harness.task import ParameterLimit

TRIED: Final = "one of several learning rates that were tried, and not chosen on dev"
LIMITED: Final = "limited"  # The flag of a row trained or evaluated on only part of the examples; never ranked.


class Kind(StrEnum):
    """How a row's predictions are made. Only trained rows are ranked; the others are baselines."""

    TRAINED = "trained"
    UNTRAINED = "untrained"  # The base model without training.
    BASELINE = "baseline"  # No language model at all.


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A task's headline, or the mean over tasks, averaged over a row's seeds.

    estimate: None if the runs have no draws. best: the best trained row of the column. tied: a trained row that
    does not differ significantly from the best. no_train: the task had no training examples.
    """

    value: float | None
    estimate: Estimate | None
    sd: float | None
    best: bool = False
    tied: bool = False
    no_train: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method of a table.

    nested: whether the row is an ablation, listed below its method. delta: its difference to that method.
    unparsed: the share of unparsed predictions by task. flags: the reasons why a result is incomplete ("limited", …).
    unranked: the reason why a trained row has no rank. also: for an ablation, what differs from its method besides the
    ablation itself.
    """

    group: SeedGroup
    label: str
    kind: Kind
    rank: int | None
    nested: bool
    delta: Difference | None
    mean: Cell
    cells: Mapping[str, Cell]
    unparsed: Mapping[str, float]
    flags: tuple[str, ...]
    unranked: str | None = None
    also: tuple[str, ...] = ()

    @property
    def tuning(self) -> Tuning | None:
        """The search that has chosen the learning rate."""
        return self.group.tuning

    @property
    def seconds(self) -> float | None:
        """Training time with searches, averaged over seeds; None without training, or if all of it was reused."""
        return _mean([(t.seconds or None) if (t := r.record.training) is not None else None for r in self.group.runs])

    @property
    def reused(self) -> bool:
        """Whether every stage of the training was reused from another run."""
        steps = [None if r.record.training is None else r.record.training.steps for r in self.group.runs]
        return self.kind is Kind.TRAINED and all(n == 0 for n in steps)

    @property
    def router_accuracy(self) -> float | None:
        """The share of prompts that are routed to their own task without labels, averaged over tasks and seeds."""
        return _mean([None if (g := r.record.generation) is None else g.router_accuracy for r in self.group.runs])

    @property
    def other_means(self) -> Mapping[str, float | None]:
        """The mean under each protocol besides the table's, averaged over seeds."""
        names = dict.fromkeys(name for run in self.group.runs for name in run.other_means)
        return {name: _mean([run.other_means.get(name) for run in self.group.runs]) for name in names}

    @property
    def n_truncated_targets(self) -> int:
        """The largest number over the seeds of training examples with a truncated target."""
        return max((t.n_target_cut for r in self.group.runs if (t := r.record.training) is not None), default=0)

    @property
    def tokens_per_second(self) -> float | None:
        """Training speed, averaged over seeds."""
        return _mean([None if (t := r.record.training) is None else t.tokens_per_second for r in self.group.runs])

    @property
    def memory(self) -> int | None:
        """The largest peak memory of training over the seeds, in bytes."""
        peaks = [t.peak_memory_bytes for r in self.group.runs if (t := r.record.training) is not None]
        return max((p for p in peaks if p is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class RowTransfer:
    """The gains of the row ``label`` over the row ``reference``, which trains each task alone."""

    label: str
    reference: str
    gains: Transfer


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """One configuration of a sweep. at: the grid's keys with their values as text."""

    at: Mapping[str, str]
    group: SeedGroup


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One method over a grid, in the order of the file; points without runs are left out."""

    name: str
    method: str
    keys: tuple[str, ...]
    points: tuple[GridPoint, ...]


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """A row of the table and the same method under other seeds (``null``), whose true difference is 0."""

    null: SeedGroup
    row: SeedGroup
    difference: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Comparable rows, best first. spec: of one run, for data, split, prompt and so on. headlines: metrics by task.

    seed_variance: the variance between seeds that the rows share, by task and for the mean (None); a missing entry
    means that each row has its own.
    """

    spec: RunSpec
    sample: bool
    tasks: tuple[str, ...]
    headlines: Mapping[str, str]
    mean_of: tuple[str, ...]
    rows: tuple[Row, ...]
    transfers: tuple[RowTransfer, ...]
    seed_variance: Mapping[str | None, SeedVariance] = field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()
    seed_noise: SeedNoise | None = None


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A run without a row, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The content of ``harness leaderboard`` for one suite and protocol.

    elsewhere: rows whose predictions come from a back end such as an API; they are never ranked.
    file: the TOML file of the leaderboard, where it has one.
    parameter_limit: the suite's rule on the size of an adapter, where it has one.
    """

    suite: str
    protocol: str
    tables: tuple[Table, ...]
    unfinished: tuple[Unfinished, ...]
    elsewhere: tuple[Row, ...] = ()
    file: BoardSpec | None = None
    parameter_limit: ParameterLimit | None = None

    @property
    def orientation(self) -> tuple[Orientation, ...]:
        """Published figures that the file lists for orientation."""
        return () if self.file is None else self.file.orientation


def setting_in_words(spec: RunSpec) -> str:
    """``test split, 100 examples of each task, chat prompt, 2 shots``: what runs are evaluated on, and how."""
    part = ", the part that is not for tuning" if spec.eval.part == "report" else ""
    limit = f", {counted(spec.eval.per_task, 'example')} of each task" if spec.eval.per_task is not None else ""
    shots = f", {counted(spec.shots, 'shot')}" if spec.shots else ""
    return f"{spec.eval.split} split{part}{limit}, {spec.prompt} prompt{template_in_words(spec.template)}{shots}"


def grid_value(key: str, value: str) -> str:
    """A value of a sweep's grid for people: no limit on the examples prints as all."""
    return value if value != "None" else "all" if key.endswith("per_task") else "none"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
