"""Runs as a leaderboard: one table for each set of runs that can be compared, one row for each method.

Runs stand in one table when data, base model, split, limits, prompt format and tasks are the same. Rows without a
base model (a majority answer, the nearest training row) stand in every table of the same data. Runs that differ in
the seed alone are one row; ablations stand beneath their method with the difference to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.config.clusters import describe
from harness.config.spec import LOCAL, RunSpec, display_name
from harness.leaderboard.tables import LIMITED, Cell, Kind, Leaderboard, Noise, Point, Row, Sweep, Table, Unfinished
from harness.scoring.groups import Finished, Group, by_seed, data_key, difference, differing, finished, flat
from harness.scoring.verdict import Transfer, transfer
from harness.store.run_directory import RunDirectory, State
from harness.sweep.entries import Matcher, Part
from harness.sweep.spec import BoardSpec
from harness.sweep.tuning import read_tuning


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


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """Runs by what they are for. A run may be a row and a point; runs that the file does not ask for are rows."""

    rows: tuple[Finished, ...]
    null: tuple[Finished, ...]
    points: tuple[tuple[str, tuple[tuple[str, str], ...], Finished], ...]  # sweep, point, run


def sort_runs(runs: Sequence[Finished], matcher: Matcher | None) -> Sorted:
    """Each run where the file wants it; all of them are rows without a file."""
    if matcher is None:
        return Sorted(rows=tuple(runs), null=(), points=())
    rows, null, points = [], [], []
    for run in runs:
        found = matcher.entries_of(run.record.spec)
        parts = {e.part for e in found}
        points += [(e.sweep or "", e.point, run) for e in found if e.part is Part.SWEEP]
        if Part.NULL in parts:
            null.append(run)
        elif not found or parts & {Part.ROW, Part.TRIVIAL}:
            rows.append(run)
    return Sorted(rows=tuple(rows), null=tuple(null), points=tuple(points))


def sweeps_of(found: Sorted, matcher: Matcher, like: Group, protocol: str) -> tuple[Sweep, ...]:
    """The sweeps with runs on the base model and data of a table's row."""
    sweeps = []
    for spec in matcher.board.sweep:
        points = []
        for at in dict.fromkeys(e.point for e in matcher.entries if e.sweep == spec.name):
            runs = [r for name, point, r in found.points if (name, point) == (spec.name, at) and _alike(r, like)]
            groups = by_seed(runs, protocol)
            if groups:  # of several learning rates, the one with most seeds
                points.append(Point(at=dict(at), group=max(groups, key=lambda g: len(g.runs))))
        if points:
            method = spec.method + (f"+{spec.ablation}" if spec.ablation else "")
            sweeps.append(Sweep(name=spec.name, method=method, keys=tuple(spec.grid), points=tuple(points)))
    return tuple(sweeps)


def noise_of(found: Sorted, rows: Sequence[Group], protocol: str) -> Noise | None:
    """The null row beside the row of the same configuration; None where either is missing."""
    for null in by_seed(found.null, protocol):
        bare = null.spec.model_copy(update={"seed": 0})
        for row in rows:
            if row.spec.model_copy(update={"seed": 0}) == bare:
                return Noise(null=null, row=row, difference=difference(null, row, None))
    return None


def _alike(run: Finished, row: Group) -> bool:
    """On the same test rows and base model; limits on the rows may differ."""
    one, two = run.record.spec, row.spec
    if (one.model and one.model.fingerprint) != (two.model and two.model.fingerprint):
        return False
    free = {"eval": one.eval.model_copy(update={"per_task": two.eval.per_task})}
    return data_key(one.model_copy(update=free)) == data_key(two)
