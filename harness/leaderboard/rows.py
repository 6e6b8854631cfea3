"""The rows of one table: labels, cells, nested ablations, ranks and transfer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from harness.config.clusters import describe_clusters
from harness.config.spec import RunSpec, display_name
from harness.leaderboard.tables import LIMITED, TRIED, Cell, Kind, Row, RowTransfer
from harness.reporting.numbers import count
from harness.scoring.comparable import differing, effort, flat, other_effort
from harness.scoring.groups import SeedGroup, shared_seed_variance
from harness.scoring.significance import Pair, best_against, family
from harness.scoring.statistics import SeedVariance
from harness.scoring.verdict import Transfer

ENOUGH_SEEDS: Final = 5  # Rows with as many seeds estimate their variance themselves.
SharedVariance = Mapping[str | None, SeedVariance]  # by task, and for the mean over tasks under None
NOT_SHARED: Final[SharedVariance] = {}
_BALANCE: Final = "train.balance"


def shared_variances(groups: Sequence[SeedGroup], tasks: Sequence[str]) -> SharedVariance:
    """The variance between seeds that the rows of a table share, where a row has few seeds and the variances agree."""
    if all(len(group.runs) >= ENOUGH_SEEDS for group in groups if group.seeded):
        return {}
    found = {task: shared_seed_variance(groups, task) for task in (None, *tasks)}
    return {task: variance for task, variance in found.items() if variance is not None}


def make_rows(groups: Sequence[SeedGroup], tasks: Sequence[str], shared: SharedVariance, *, ranked: bool) -> list[Row]:
    """The rows of a table, best first, with ablations nested under their methods.

    Args: ranked: whether rows have ranks and marks for the best; tables of an embedded sample have neither.
    """
    labels = _labels([g.spec for g in groups], [g.tuning is not None for g in groups])
    rows = [make_row(group, label, tasks, shared) for group, label in zip(groups, labels, strict=True)]
    rows = [replace(row, unranked=reason) for row, reason in zip(rows, _unranked(rows), strict=True)]
    rows = _nested(rows, shared)
    return _ranked(_marked(rows, tasks, shared)) if ranked else rows


def make_row(group: SeedGroup, label: str, tasks: Sequence[str], shared: SharedVariance = NOT_SHARED) -> Row:
    """One row without rank, marks and nesting."""
    record = group.runs[0].record
    kind = Kind.BASELINE if group.spec.model is None else Kind.UNTRAINED if record.training is None else Kind.TRAINED
    scores = {task: [s for r in group.runs if (s := r.table.tasks.get(task)) is not None] for task in tasks}
    n = {task: sum(s.n for s in of_task) for task, of_task in scores.items()}
    return Row(
        group=group,
        label=label,
        kind=kind,
        rank=None,
        nested=False,
        delta=None,
        mean=_cell(group, None, shared),
        cells={
            task: replace(
                _cell(group, task, shared), no_train=kind is Kind.TRAINED and any(s.n_train == 0 for s in scores[task])
            )
            for task in tasks
        },
        unparsed={t: sum(s.n_unparsed or 0 for s in of_task) / n[t] for t, of_task in scores.items() if n[t]},
        flags=_flags(group),
    )


def transfers_of(
    rows: Sequence[Row], reference: str | None, tasks: Sequence[str], shared: SharedVariance
) -> tuple[RowTransfer, ...]:
    """The gains of every trained method of a table over the method that trains each task alone, where it is there.

    The gains of all rows on all tasks are one family of tests, those of the means another.
    """
    alone = next((r for r in rows if r.group.name == reference), None)
    if alone is None:
        return ()
    others = [r for r in rows if r.kind is Kind.TRAINED and not r.nested and r is not alone]
    means = family([Pair(a=r.group, b=alone.group, shared=shared.get(None)) for r in others])
    pairs = [Pair(a=r.group, b=alone.group, task=task, shared=shared.get(task)) for r in others for task in tasks]
    found = iter(family(pairs))
    gains = []
    for row, mean in zip(others, means, strict=True):
        by_task = {task: next(found) for task in tasks}
        known = {task: gain for task, gain in by_task.items() if gain.estimate is not None}
        gains.append(RowTransfer(label=row.label, reference=alone.label, gains=Transfer(gains=known, mean=mean)))
    return tuple(t for t in gains if t.gains.gains)


def _labels(specs: Sequence[RunSpec], searched: Sequence[bool]) -> list[str]:
    """``cgc_lora+no_gate``, ``moe_lora (paper)``, ``lora_all (1+4 kind)``.

    Rows with equal names are completed with the keys in which they differ, with the learning rate only where it was
    given and not chosen by a search, and with the budget only where it is not that of most rows. Fields of the method
    that follow from the budget are not repeated.
    """
    names = [_name(s) for s in specs]
    usual = Counter(s.budget for s in specs).most_common(1)
    labels = []
    for name, spec, tuned in zip(names, specs, searched, strict=True):
        same = [s for n, s in zip(names, specs, strict=True) if n == name]
        keys = [k for k in differing(same) if k not in ("model.label", "data.label")]
        if tuned:
            keys = [k for k in keys if k != "train.lr"]
        if "budget" in keys:
            own = differing([s for s in same if s.budget == spec.budget])
            keys = [k for k in keys if k in own or not k.startswith("method.")]
            keys = [k for k in keys if k != "budget" or spec.budget != usual[0][0]]
        balance = _balance(spec) if any(k.startswith(_BALANCE) for k in keys) else []
        keys = [k for k in keys if not k.startswith(("method.resolved.", _BALANCE))]
        values = {k.replace(".fields.", "."): v for k, v in flat(spec).items() if k in keys and k != "method.fields"}
        if "budget" in values:
            values["budget"] = spec.budget or "none"
        labels.append(" ".join([name, *(f"{k}={v}" for k, v in values.items()), *balance]))
    return labels


def _balance(spec: RunSpec) -> list[str]:
    """``train.balance=famo balance.lr=0.05``, as it is given on the command line."""
    balance = spec.train.balance
    if balance is None:
        return [f"{_BALANCE}=none"]
    return [f"{_BALANCE}={balance.name}", *(f"balance.{k}={json.dumps(v)}" for k, v in balance.fields.items())]


def _name(spec: RunSpec) -> str:
    notes = [note for note in (spec.method.preset, describe_clusters(spec)) if note]
    return display_name(spec) + (f" ({', '.join(notes)})" if notes else "")


def _cell(group: SeedGroup, task: str | None, shared: SharedVariance) -> Cell:
    values, value = group.values(task), group.value(task)
    sd = None
    if value is not None and len(values) > 1:
        sd = (sum((v - value) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return Cell(value=value, estimate=group.estimate(task, shared.get(task)), sd=sd)


def _unranked(rows: Sequence[Row]) -> list[str | None]:
    """For each row the reason why it has no rank, if it has one: another effort, or a learning rate among several."""
    trained = [row for row in rows if row.kind is Kind.TRAINED]
    efforts = [effort(row.group.spec) for row in trained if row.group.spec.method.ablation is None]
    usual = max(efforts, key=lambda e: (efforts.count(e), e["train.per_task"] == "null"), default=None)
    typical = next((row.group.spec for row in trained if effort(row.group.spec) == usual), None)
    alike = Counter(_apart_from_the_rate(row.group.spec) for row in trained)
    reasons: list[str | None] = []
    for row in rows:
        if row.kind is not Kind.TRAINED or typical is None:
            reasons.append(None)
        elif (other := other_effort(row.group.spec, typical, row.group.tuned_keys)) is not None:
            reasons.append(other)
        else:
            has_other_rates = alike[_apart_from_the_rate(row.group.spec)] > 1
            reasons.append(TRIED if row.group.tuning is None and has_other_rates else None)
    return reasons


def _apart_from_the_rate(spec: RunSpec) -> frozenset[tuple[str, str]]:
    """Everything that rows with different learning rates of one method have in common."""
    return frozenset((k, v) for k, v in flat(spec).items() if k not in ("train.lr", "model.label", "data.label"))


def _flags(group: SeedGroup) -> tuple[str, ...]:
    flags = []
    if group.spec.train.per_task is not None or group.spec.eval.per_task is not None:
        flags.append(LIMITED)
    if any(r.record.generation is not None and r.record.generation.halved for r in group.runs):
        flags.append("batches halved")
    if any(r.record.provenance.dirty for r in group.runs):
        flags.append("uncommitted changes")
    return tuple(flags)


def _nested(rows: Sequence[Row], shared: SharedVariance) -> list[Row]:
    """Methods by mean, best first, each followed by its ablations; an ablation without its method is a row itself.

    The differences of all ablations of a table are one family of tests.
    """

    def order(row: Row) -> float:
        return -1.0 if row.mean.value is None else row.mean.value

    ordered = sorted(rows, key=order, reverse=True)
    parents = {row.group: _parent(row, rows) if row.group.spec.method.ablation else None for row in ordered}
    top = [row for row in ordered if parents[row.group] is None]
    nested = [(row, parent) for row in ordered if (parent := parents[row.group]) is not None]
    deltas = family([Pair(a=row.group, b=parent.group, shared=shared.get(None)) for row, parent in nested])
    ablations: dict[SeedGroup, list[Row]] = {}
    for (row, parent), delta in zip(nested, deltas, strict=True):
        ablations.setdefault(parent.group, []).append(replace(row, nested=True, delta=delta, also=_also(row, parent)))
    return [r for row in top for r in (row, *ablations.get(row.group, ()))]


def _also(row: Row, parent: Row) -> tuple[str, ...]:
    """What an ablation changes besides its name: ``stored 3.18 M → 199 k``."""
    mine, theirs = row.group.runs[0].record.parameters, parent.group.runs[0].record.parameters
    pairs = [
        ("stored", count(theirs.stored), count(mine.stored)),
        ("active", count(theirs.active), count(mine.active)),
        ("budget", parent.group.spec.budget or "none", row.group.spec.budget or "none"),
        ("lr", f"{parent.group.spec.train.lr:g}", f"{row.group.spec.train.lr:g}"),
        ("seeds", str(len(parent.group.runs)), str(len(row.group.runs))),
    ]
    return tuple(f"{name} {before} → {after}" for name, before, after in pairs if before != after)


def _parent(ablation: Row, rows: Sequence[Row]) -> Row | None:
    """The row of the same method that differs only in the ablation, the one with the fewest other values; or None.

    The learning rate may differ, because each row has its own, and so may the budget, which an ablation may exceed.
    """
    spec = ablation.group.spec
    same = {"preset": spec.method.preset, "clusters": spec.clusters}
    family = [
        row
        for row in rows
        if row.group.spec.method.name == spec.method.name
        and row.group.spec.method.ablation is None
        and {"preset": row.group.spec.method.preset, "clusters": row.group.spec.clusters} == same
        and other_effort(row.group.spec, spec, ("budget", *row.group.tuned_keys)) is None
    ]
    return min(family, key=lambda r: len(differing([r.group.spec, spec])), default=None)


def _marked(rows: Sequence[Row], tasks: Sequence[str], shared: SharedVariance) -> list[Row]:
    """Mark the best trained row of each column, and those that do not differ significantly from it.

    The comparisons with the best row of a column are one family of tests.
    """
    rows = list(rows)
    for task in (None, *tasks):
        trained = [i for i, r in enumerate(rows) if _is_result(r) and _value(r, task) is not None]
        if not trained:
            continue
        best = max(trained, key=lambda i: _value(rows[i], task) or 0.0)
        others = [i for i in trained if i != best]
        pairs = [Pair(a=rows[best].group, b=rows[i].group, task=task, shared=shared.get(task)) for i in others]
        rows[best] = _with_marks(rows[best], task, best=True, tied=False)
        for i, found in zip(others, best_against(pairs), strict=True):
            rows[i] = _with_marks(rows[i], task, best=False, tied=not found.significant)
    return rows


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Ranks of trained rows with a mean that are neither ablations nor limited; equal values share a rank."""
    values = [r.mean.value for r in rows if _may_rank(r)]
    return [replace(r, rank=values.index(r.mean.value) + 1) if _may_rank(r) else r for r in rows]


def _may_rank(row: Row) -> bool:
    return _is_result(row) and not row.nested and row.mean.value is not None


def _is_result(row: Row) -> bool:
    return row.kind is Kind.TRAINED and LIMITED not in row.flags and row.unranked is None


def _value(row: Row, task: str | None) -> float | None:
    return row.mean.value if task is None else row.cells[task].value


def _with_marks(row: Row, task: str | None, *, best: bool, tied: bool) -> Row:
    if task is None:
        return replace(row, mean=replace(row.mean, best=best, tied=tied))
    return replace(row, cells={**row.cells, task: replace(row.cells[task], best=best, tied=tied)})
