"""Runs as a leaderboard: one table for each set of runs that can be compared, one row for each method.

Runs stand in one table when data, base model, split, limits, prompt format and tasks are the same. Rows without a
base model (a majority answer, the nearest training row) stand in every table of the same data. Runs that differ in
the seed alone are one row; ablations stand beneath their method with the difference to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from harness.board_match import Matcher
from harness.board_parts import Noise, Sweep, noise_of, sort_runs, sweeps_of
from harness.board_spec import BoardSpec, Orientation
from harness.clusters import describe
from harness.groups import Finished, Group, by_seed, data_key, difference, differing, finished, flat
from harness.spec import LOCAL, RunSpec, display_name
from harness.stats import Estimate
from harness.store import RunDirectory, State
from harness.transfer import Transfer, transfer
from harness.tuning import Tuning, read_tuning

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


def build(
    runs: Sequence[RunDirectory],
    suite: str,
    protocol: str,
    *,
    reference: str | None = None,
    file: BoardSpec | None = None,
) -> Leaderboard:
    """Group runs into tables and rows.

    Args:
        runs: of any suite, finished or not; those of other suites are passed over.
        protocol: whose scores are shown; a run without them is listed as unfinished.
        reference: the method that trains every task alone; where a table has it, transfer against it is shown.
        file: what the leaderboard compares; its sweeps and its null row are no rows of the tables.
    """
    done: list[Finished] = []
    unfinished: list[Unfinished] = []
    for directory in runs:
        spec = directory.spec()
        if spec is None or spec.suite.name != suite:
            continue
        if (state := directory.state()) is not State.DONE:
            unfinished.append(Unfinished(name=directory.name, reason=_state(directory, state)))
        elif (run := finished(directory, protocol)) is None:
            unfinished.append(Unfinished(name=directory.name, reason=f"no scores under the protocol {protocol}"))
        else:
            done.append(run)
    matcher = None if file is None else Matcher(file)
    elsewhere = by_seed([r for r in done if r.record.spec.backend != LOCAL], protocol)
    sorted_runs = sort_runs([r for r in done if r.record.spec.backend == LOCAL], matcher)
    tables = []
    for groups in _comparable(by_seed(sorted_runs.rows, protocol)):
        table = _table(groups, reference)
        if matcher is not None:
            like = next((g for g in groups if g.spec.model is not None), groups[0])
            sweeps = sweeps_of(sorted_runs, matcher, like, protocol)
            table = replace(table, sweeps=sweeps, noise=noise_of(sorted_runs, groups, protocol))
        tables.append(table)
    return Leaderboard(
        suite=suite,
        protocol=protocol,
        tables=tuple(tables),
        unfinished=tuple(unfinished),
        elsewhere=tuple(_elsewhere(elsewhere)),
        file=file,
    )


def _state(run: RunDirectory, state: State) -> str:
    """``stopped``, ``failed in train: NotFinite: the loss is nan …`` (its first sentence)."""
    failure = run.failure()
    if state is not State.FAILED or failure is None:
        return str(state)
    return f"failed in {failure.stage}: {failure.error}: {failure.message.split('. ')[0]}"


def _elsewhere(groups: Sequence[Group]) -> list[Row]:
    """Rows of back ends, best first: ``gpt-x (lm-eval:openai-chat-completions)``."""
    rows = []
    for group in groups:
        model = group.spec.model
        name = group.name if model is None else model.label
        rows.append(_row(group, name, tuple(group.runs[0].table.tasks)))
    return sorted(rows, key=lambda r: -1.0 if r.mean.value is None else r.mean.value, reverse=True)


def _comparable(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups by table, the table with most rows first; rows without a model join every table of their data."""
    tables: dict[tuple[str, str], list[Group]] = {}
    without: dict[str, list[Group]] = {}
    for group in groups:
        key = data_key(group.spec)
        if group.spec.model is None:
            without.setdefault(key, []).append(group)
        else:
            tables.setdefault((key, group.spec.model.fingerprint), []).append(group)
    for (key, _), of_table in tables.items():
        of_table.extend(without.get(key, ()))
    alone = [of_data for key, of_data in without.items() if all(key != k for k, _ in tables)]
    return sorted([*tables.values(), *alone], key=len, reverse=True)


def _table(groups: Sequence[Group], reference: str | None) -> Table:
    first = next((g for g in groups if g.spec.model is not None), groups[0])
    table = first.runs[0].table
    sample = any(run.record.sample for g in groups for run in g.runs)
    labels = _labels([g.spec for g in groups])
    rows = [_row(group, label, tuple(table.tasks)) for group, label in zip(groups, labels, strict=True)]
    rows = _beneath(rows)
    if not sample:
        rows = _ranked(_compared(rows, tuple(table.tasks)))
    return Table(
        spec=first.spec,
        sample=sample,
        tasks=tuple(table.tasks),
        headlines={task: score.headline for task, score in table.tasks.items()},
        mean_of=table.mean_of,
        rows=tuple(rows),
        transfers=_transfers(rows, reference, tuple(table.tasks)),
    )


def _labels(specs: Sequence[RunSpec]) -> list[str]:
    """``cgc_lora+no_gate``, ``moe_lora (paper)``, ``lora_all (1+4 kind)``.

    Rows of one name also show the keys in which they differ.
    """
    names = [_name(s) for s in specs]
    labels = []
    for name, spec in zip(names, specs, strict=True):
        same = [s for n, s in zip(names, specs, strict=True) if n == name]
        keys = [k for k in differing(same) if k not in ("train.lr", "model.label", "data.label")]
        values = {k: v for k, v in flat(spec).items() if k in keys and not k.startswith("method.resolved.")}
        labels.append(" ".join([name, *(f"{k.replace('.fields.', '.')}={v}" for k, v in values.items())]))
    return labels


def _name(spec: RunSpec) -> str:
    notes = [note for note in (spec.method.preset, describe(spec)) if note]
    return display_name(spec) + (f" ({', '.join(notes)})" if notes else "")


def _row(group: Group, label: str, tasks: Sequence[str]) -> Row:
    record = group.runs[0].record
    kind = Kind.TRIVIAL if group.spec.model is None else Kind.UNTRAINED if record.training is None else Kind.TRAINED
    scores = {task: [s for r in group.runs if (s := r.table.tasks.get(task)) is not None] for task in tasks}
    n = {task: sum(s.n for s in found) for task, found in scores.items()}
    return Row(
        group=group,
        label=label,
        kind=kind,
        rank=None,
        beneath=False,
        delta=None,
        mean=_cell(group, None),
        cells={
            task: replace(
                _cell(group, task), no_train=kind is Kind.TRAINED and any(s.n_train == 0 for s in scores[task])
            )
            for task in tasks
        },
        unparsed={t: sum(s.n_unparsed or 0 for s in found) / n[t] for t, found in scores.items() if n[t]},
        flags=_flags(group),
        tuning=read_tuning(group.runs[0].directory),
    )


def _cell(group: Group, task: str | None) -> Cell:
    values = [v for run in group.runs if (v := run.value(task)) is not None]
    value = group.value(task)
    sd = None
    if value is not None and len(values) > 1:
        sd = (sum((v - value) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return Cell(value=value, estimate=group.estimate(task), sd=sd)


def _flags(group: Group) -> tuple[str, ...]:
    flags = []
    if group.spec.train.per_task is not None or group.spec.eval.per_task is not None:
        flags.append(LIMITED)
    if any(r.record.generation is not None and r.record.generation.halved for r in group.runs):
        flags.append("batches halved")
    if any(r.record.provenance.dirty for r in group.runs):
        flags.append("uncommitted changes")
    return tuple(flags)


def _beneath(rows: Sequence[Row]) -> list[Row]:
    """Methods by mean, best first, each with its ablations beneath it; an ablation without its method is a row."""

    def order(row: Row) -> float:
        return -1.0 if row.mean.value is None else row.mean.value

    found: dict[int, list[Row]] = {}
    top = []
    for row in sorted(rows, key=order, reverse=True):
        parent = _parent(row, rows) if row.group.spec.method.ablation else None
        if parent is None:
            top.append(row)
        else:
            delta = difference(row.group, parent.group, None)
            found.setdefault(id(parent), []).append(replace(row, beneath=True, delta=delta))
    return [r for row in top for r in (row, *found.get(id(row), ()))]


def _parent(ablation: Row, rows: Sequence[Row]) -> Row | None:
    """The row of the same method without an ablation whose other choices are nearest to the ablation's."""
    spec = ablation.group.spec
    family = [r for r in rows if r.group.spec.method.name == spec.method.name and r.group.spec.method.ablation is None]
    return min(family, key=lambda r: len(differing([r.group.spec, spec])), default=None)


def _compared(rows: Sequence[Row], tasks: Sequence[str]) -> list[Row]:
    """Mark the best trained row of each column and those that are not shown to differ from it."""
    rows = list(rows)
    for task in (None, *tasks):
        trained = [i for i, r in enumerate(rows) if _is_result(r) and _value(r, task) is not None]
        if not trained:
            continue
        best = max(trained, key=lambda i: _value(rows[i], task) or 0.0)
        group = rows[best].group
        for i in trained:
            to_best = None if i == best else difference(group, rows[i].group, task)
            tied = to_best is not None and not to_best.shown
            rows[i] = _with_cell(rows[i], task, best=i == best, tied=tied)
    return rows


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Ranks of trained rows with a mean that are neither ablations nor limited; equal values share a rank."""
    ranked = [r for r in rows if _may_rank(r)]
    values = [r.mean.value for r in ranked]
    return [replace(r, rank=values.index(r.mean.value) + 1) if _may_rank(r) else r for r in rows]


def _may_rank(row: Row) -> bool:
    return _is_result(row) and not row.beneath and row.mean.value is not None


def _is_result(row: Row) -> bool:
    return row.kind is Kind.TRAINED and LIMITED not in row.flags


def _transfers(
    rows: Sequence[Row], reference: str | None, tasks: Sequence[str]
) -> tuple[tuple[str, str, Transfer], ...]:
    alone = next((r for r in rows if r.group.name == reference), None)
    if alone is None:
        return ()
    others = [r for r in rows if r.kind is Kind.TRAINED and not r.beneath and r is not alone]
    found = [(r.label, alone.label, transfer(r.group, alone.group, tasks)) for r in others]
    return tuple(t for t in found if t[2].gains)


def _value(row: Row, task: str | None) -> float | None:
    return row.mean.value if task is None else row.cells[task].value


def _with_cell(row: Row, task: str | None, *, best: bool, tied: bool) -> Row:
    if task is None:
        return replace(row, mean=replace(row.mean, best=best, tied=tied))
    return replace(row, cells={**row.cells, task: replace(row.cells[task], best=best, tied=tied)})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
