"""The sections of a leaderboard's Markdown below its tables: learning rates, transfer, seed noise, claims, sweeps."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from harness.leaderboard.tables import Row, RowTransfer, SeedNoise, Sweep, Table, grid_value, setting_in_words
from harness.reporting.markdown import cells, escape, heading, side_by_side, unbroken
from harness.reporting.numbers import MISSING, count, number, percent, points
from harness.scoring.significance import Difference, Pair, family
from harness.scoring.statistics import SeedVariance
from harness.scoring.verdict import gain, score_interval, verdict
from harness.store.tuning import Tuning
from harness.sweep.spec import Claim, Orientation


def sections(table: Table, claims: Sequence[Claim]) -> Iterator[str]:
    """Every section with content, line by line. Claims are not tested on an embedded sample."""
    yield from other_protocols(table)
    yield from learning_rates(table.rows)
    yield from transfers(table)
    if table.seed_noise is not None:
        yield from seed_noise(table.seed_noise)
    if claims and not table.sample:
        yield from tested_claims(table, claims)
    for sweep in table.sweeps:
        yield from one_sweep(sweep, table.seed_variance.get(None))


def other_protocols(table: Table) -> Iterator[str]:
    """The means under the suite's other protocols, which may read the same predictions more strictly."""
    names = list(dict.fromkeys(name for row in table.rows for name in row.other_means))
    if not names:
        return
    protocol = table.rows[0].group.protocol
    yield from ("### Other protocols", "")
    yield from heading(["method", *map(escape, (protocol, *names))])
    for row in table.rows:
        means = [row.mean.value, *(row.other_means.get(name) for name in names)]
        yield cells([escape(row.label), *map(percent, means)])
    yield from ("", f"Means of the same predictions; ranks and intervals are those of {escape(protocol)}.", "")


def learning_rates(rows: Sequence[Row]) -> Iterator[str]:
    """The mean on dev of every learning rate, the chosen one in bold."""
    tuned = {row.label: row.tuning for row in rows if row.tuning is not None}
    if not tuned:
        return
    rates = sorted({t.lr for tuning in tuned.values() for t in tuning.grid})
    yield from ("### Learning rates", "")
    yield from heading(["method", *(f"{lr:g}" for lr in rates)])
    for label, tuning in tuned.items():
        yield cells([escape(label), *(_tried(tuning, lr) for lr in rates)])
    splits = ", ".join(sorted({t.split for t in tuned.values()}))
    seeds = ", ".join(sorted({str(seed) for t in tuned.values() for seed in t.seeds or (t.seed,)}))
    yield from (
        "",
        f"Mean on {splits}, seed {seeds}, in percent; **bold**: chosen for every seed. A grid grows until its best is "
        "inside.",
    )
    yield from _grid_notes(tuned)
    yield ""


def _tried(tuning: Tuning, lr: float) -> str:
    """The mean at a learning rate, the best one where other fields were tried with it."""
    tried = [t for t in tuning.grid if t.lr == lr]
    if not tried:
        return MISSING
    means = [t.mean for t in tried if t.mean is not None]
    text = percent(max(means)) if means else "diverged"
    return f"**{text}**" if tuning.chosen == lr else text


def _grid_notes(tuned: Mapping[str, Tuning]) -> Iterator[str]:
    """Which rows have their best learning rate at an end of what was tried, and which other fields were chosen."""
    open_ends = [escape(label) for label, tuning in tuned.items() if tuning.at_the_edge]
    if open_ends:
        yield (
            f"At the edge of what was tried, so that a better value may be outside and no verdict is given: "
            f"{', '.join(open_ends)}."
        )
    others = [
        f"{escape(label)}: {escape(', '.join(f'{key}={value}' for key, value in tuning.chosen_others.items()))}"
        for label, tuning in tuned.items()
        if tuning.chosen_others
    ]
    if others:
        yield f"Chosen together with the learning rate: {'; '.join(others)}."


def transfers(table: Table) -> Iterator[str]:
    """The gains on each task of training tasks together over training each task alone."""
    if not table.transfers:
        return
    yield from ("### Transfer", "")
    method, mean, losing = 24, 22, 26  # characters of the columns
    tables = side_by_side(table.tasks, (method, mean, losing))
    if len(tables) > 1:  # The gains on the tasks are in tables of their own.
        tables = [{}, *side_by_side(table.tasks, (method,))]
    for i, names in enumerate(tables):
        head = [unbroken("mean (95 % interval)"), "losing"] if i == 0 else []
        yield from heading(["method", *head, *map(escape, names.values())])
        for row in table.transfers:
            gains = [_gain(row.gains.gains.get(task), bold=not table.sample) for task in names]
            whole = [_mean_gain(row), _losing(row, tested=not table.sample)] if i == 0 else []
            yield cells([escape(row.label), *whole, *gains])
        yield ""
    bold = "" if table.sample else "; **bold**: significant (5 %, Holm's correction for all rows and tasks)"
    yield (
        f"Gains in percentage points over {escape(table.transfers[0].reference)}, which trains each task alone; "
        f"losing: tasks that score lower than when trained alone{bold}."
    )
    yield ""


def _mean_gain(row: RowTransfer) -> str:
    return unbroken(gain(row.gains.mean.estimate))


def _losing(row: RowTransfer, *, tested: bool) -> str:
    """``6 of 7 (2 significantly)``: the tasks that score lower than when trained alone."""
    found = row.gains
    words = f" ({len(found.losing_significantly)} significantly)" if tested else ""
    return unbroken(f"{len(found.losing)} of {len(found.gains)}{words}")


def _gain(found: Difference | None, *, bold: bool) -> str:
    if found is None or found.estimate is None:
        return MISSING
    text = points(found.estimate.value)
    return f"**{text}**" if bold and found.significant else text


def seed_noise(noise: SeedNoise) -> Iterator[str]:
    """The difference between two groups of runs of one method that differ only in their seeds."""
    ours, theirs = ([str(r.record.spec.seed) for r in g.runs] for g in (noise.row, noise.null))
    yield from ("### Seed noise", "")
    gap = gain(noise.difference)
    yield (
        f"{escape(noise.row.name)} with the seeds {', '.join(theirs)} instead of {', '.join(ours)}: mean "
        f"{percent(noise.null.value(None))} instead of {percent(noise.row.value(None))}, a difference of {gap} between "
        "runs of the same method, whose true difference is 0. A single pair like this checks the interval; it is not "
        "the smallest difference that counts."
    )
    yield ""


def tested_claims(table: Table, claims: Sequence[Claim]) -> Iterator[str]:
    """The claims that the leaderboard's file quotes from papers, with a verdict on each."""
    yield from ("### Claims", "")
    pairs = [(_named(table, claim.above), _named(table, claim.below)) for claim in claims]
    known = [(above, below) for above, below in pairs if above is not None and below is not None]
    shared = table.seed_variance.get(None)
    found = iter(family([Pair(a=above.group, b=below.group, shared=shared) for above, below in known]))
    for claim, (above, below) in zip(claims, pairs, strict=True):
        quoted = f"{escape(claim.above)} above {escape(claim.below)} ({escape(claim.by)}): "
        if above is None or below is None:
            yield f"- {quoted}no finished runs of {escape(claim.above if above is None else claim.below)}"
        else:
            yield f"- {quoted}{escape(verdict(above.label, below.label, next(found)))}"
    yield ""


def _named(table: Table, name: str) -> Row | None:
    """The row with this label; else, of the rows of this method, one with the table's own effort and one adapter."""
    rows = [r for r in table.rows if r.group.name == name and r.group.spec.method.preset is None]
    rows.sort(key=lambda r: (r.label != name, r.unranked is not None, r.group.spec.clusters is not None))
    return rows[0] if rows else next((r for r in table.rows if r.label == name), None)


def one_sweep(sweep: Sweep, shared: SeedVariance | None) -> Iterator[str]:
    """A table with a line for each point of a sweep. shared: the variance between seeds of the table's rows."""
    yield from (f"### Sweep: {escape(sweep.name)} of {escape(sweep.method)}", "")
    yield from heading([*map(escape, sweep.keys), "mean", "stored", "lr", "seeds"])
    for point in sweep.points:
        group = point.group
        estimate = group.estimate(None, shared)
        ends = "" if estimate is None else f" ({score_interval(estimate)})"
        mean = unbroken(percent(group.value(None)) + ends)
        stored = unbroken(count(group.runs[0].record.parameters.stored))
        at = [escape(grid_value(key, point.at[key])) for key in sweep.keys]
        yield cells([*at, mean, stored, f"{group.spec.train.lr:g}", str(len(group.runs))])
    yield ""


def orientation(figures: Sequence[Orientation], rows: Sequence[Row]) -> Iterator[str]:
    """Published figures in the file's order, then rows of back ends, best first. Neither is ranked."""
    if not figures and not rows:
        return
    yield from ("## For orientation", "")
    yield "Published figures and API models. Their settings differ, so they are not ranked or compared with the rows."
    yield ""
    yield from heading(["name", "mean", unbroken("95 % interval"), "note"], left=("name", "note"))
    for figure in figures:
        yield cells([escape(figure.name), number(figure.value, 2), MISSING, escape(figure.note)])
    for row in rows:
        interval = unbroken(score_interval(row.mean.estimate))
        yield cells(
            [
                escape(row.label),
                percent(row.mean.value),
                interval,
                escape(f"{row.group.spec.data.label}, {setting_in_words(row.group.spec)}"),
            ]
        )
    yield ""
    tasks = list(dict.fromkeys(task for row in rows for task in row.cells))
    for names in side_by_side(tasks):
        yield from heading(["name", *map(escape, names.values())], left=("name",))
        for row in rows:
            values = [percent(row.cells[t].value) if t in row.cells else MISSING for t in names]
            yield cells([escape(row.label), *values])
        yield ""


_CAPTIONS: Final = {
    "means": "Mean against stored parameters",
    "times": "Mean against training time",
    "ablations": "Differences between ablations and their methods",
    "transfer": "Transfer: gains over training each task alone",
    "curves": "Training loss",
    "gates": "Gate weights by task, block and expert:",
    "skills": "Skills that each task uses:",
    "sweep": "Sweep:",
}


def pictures(folder: str, names: Sequence[str]) -> Iterator[str]:
    """Pictures by file name without suffix, each in a light and a dark version."""
    if not names:
        return
    yield from ("## Pictures", "")
    several = len({name.split("-")[0] for name in names}) > 1
    for name in sorted(names, key=_order):
        table, kind, *subject = name.split("-", 2)
        caption = " ".join([_CAPTIONS.get(kind, kind), *subject]) + (f", {table}" if several else "")
        yield from (f"### {escape(caption)}", "")
        light, dark = (f"{folder}/{name}{variant}.svg" for variant in ("", "-dark"))
        yield (
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img alt="{html.escape(caption)}" src="{light}"></picture>'
        )
        yield ""


def _order(name: str) -> tuple[str, int, str]:
    """Pictures are sorted by table, then in the order of the captions."""
    table, kind, *subject = name.split("-", 2)
    kinds = list(_CAPTIONS)
    return table, kinds.index(kind) if kind in kinds else len(kinds), "".join(subject)
