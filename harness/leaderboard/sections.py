"""What a leaderboard's Markdown says beneath its table: learning rates, transfer, noise, claims, sweeps, pictures."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from harness.config.spec import RunSpec
from harness.leaderboard.tables import Noise, Row, Sweep, Table, shown
from harness.reporting.markdown import cells, escape, heading, hold, side_by_side
from harness.reporting.numbers import MISSING, count, percent
from harness.scoring.groups import difference
from harness.scoring.statistics import Estimate
from harness.scoring.verdict import points, signed, span, verdict
from harness.sweep.spec import Claim, Orientation
from harness.sweep.tuning import Tuning


def sections(table: Table, claims: Sequence[Claim]) -> Iterator[str]:
    """Every section that has something to say, line by line."""
    yield from learning_rates(table.rows)
    yield from transfers(table)
    if table.noise is not None:
        yield from noise(table.noise)
    if claims and not table.sample:  # the sample answers no such question
        yield from answers(table, claims)
    for sweep in table.sweeps:
        yield from one_sweep(sweep)


def learning_rates(rows: Sequence[Row]) -> Iterator[str]:
    """The mean on dev of every rate that was tried; the chosen one in bold."""
    tuned = [(row, row.tuning) for row in rows if row.tuning is not None]
    if not tuned:
        return
    rates = sorted({t.lr for _, tuning in tuned for t in tuning.grid})
    yield from ("### Learning rates", "")
    yield from heading(["method", *(f"{lr:g}" for lr in rates)])
    for row, tuning in tuned:
        yield cells([escape(row.label), *(_tried(tuning, lr) for lr in rates)])
    split, seeds = (", ".join(sorted({str(getattr(t, k)) for _, t in tuned})) for k in ("split", "seed"))
    yield from ("", f"Mean on {split}, seed {seeds}, in percent; **bold**: chosen, and used for every seed.")
    edge = [tuning for _, tuning in tuned if tuning.at_the_edge]
    if edge:
        yield f"{len(edge)} of {len(tuned)} rows chose an end of their grid: a better rate may lie beyond it."
    yield ""


def _tried(tuning: Tuning, lr: float) -> str:
    found = next((t for t in tuning.grid if t.lr == lr), None)
    if found is None:
        return MISSING
    text = "diverged" if found.mean is None else percent(found.mean)
    return f"**{text}**" if tuning.chosen == lr else text


def transfers(table: Table) -> Iterator[str]:
    """What training together gains on each task over training it alone."""
    if not table.transfers:
        return
    alone = table.transfers[0][1]
    yield from ("### Transfer", "")
    for names in side_by_side(table.tasks):
        yield from heading(["method", hold("mean (95 % interval)"), "lose", *map(escape, names.values())])
        for label, _, found in table.transfers:
            lose = f"{len(found.losing)} of {len(found.gains)}"
            lose += "" if table.sample else f" ({len(found.losing_shown)} shown)"
            mean = MISSING if found.mean is None else points(found.mean)
            gains = [_gain(found.gains.get(task), bold=not table.sample) for task in names]
            yield cells([escape(label), hold(mean), hold(lose), *gains])
        yield ""
    bold = "" if table.sample else "; **bold**: the 95 % interval leaves out 0"
    yield f"Points over {escape(alone)}, which trains every task alone; lose: tasks that are worse off together{bold}."
    yield ""


def _gain(found: Estimate | None, *, bold: bool) -> str:
    if found is None:
        return MISSING
    text = signed(found.value)
    return f"**{text}**" if bold and found.shown else text


def noise(found: Noise) -> Iterator[str]:
    """How far apart two rows are that differ in nothing but their seeds."""
    ours, theirs = ([str(r.record.spec.seed) for r in g.runs] for g in (found.row, found.null))
    yield from ("### Noise", "")
    gap = MISSING if found.difference is None else points(found.difference)
    yield (
        f"{escape(found.row.name)} with the seeds {', '.join(theirs)} instead of {', '.join(ours)}: mean "
        f"{percent(found.null.value(None))} instead of {percent(found.row.value(None))}, a difference of {gap} that is "
        "noise alone. Two methods that differ by no more than this may be as good as each other."
    )
    yield ""


def answers(table: Table, claims: Sequence[Claim]) -> Iterator[str]:
    """What papers claim, in words."""
    yield from ("### Claims", "")
    for claim in claims:
        above, below = (_named(table, name) for name in (claim.above, claim.below))
        said = f"{escape(claim.above)} above {escape(claim.below)} ({escape(claim.by)}): "
        if above is None or below is None:
            yield f"- {said}no finished runs of {escape(claim.above if above is None else claim.below)}"
        else:
            gain = difference(above.group, below.group, None)
            yield f"- {said}" + ("no interval" if gain is None else escape(verdict(above.label, below.label, gain)))
    yield ""


def _named(table: Table, name: str) -> Row | None:
    return next((r for r in table.rows if r.label == name), None) or next(
        (r for r in table.rows if r.group.name == name and r.group.spec.method.preset is None), None
    )


def one_sweep(sweep: Sweep) -> Iterator[str]:
    """A line for each point."""
    yield from (f"### Sweep: {escape(sweep.name)} of {escape(sweep.method)}", "")
    yield from heading([*map(escape, sweep.keys), "mean", "stored", "lr", "seeds"])
    for point in sweep.points:
        group = point.group
        mean = hold(percent(group.value(None)) + span(group.estimate(None)))
        stored = hold(count(group.runs[0].record.parameters.stored))
        at = [escape(shown(key, point.at[key])) for key in sweep.keys]
        yield cells([*at, mean, stored, f"{group.spec.train.lr:g}", str(len(group.runs))])
    yield ""


def orientation(figures: Sequence[Orientation], rows: Sequence[Row]) -> Iterator[str]:
    """Figures from elsewhere, in the file's order, and answers of back ends, best first: never ranked."""
    if not figures and not rows:
        return
    yield from ("## For orientation", "")
    yield "Published figures and API models: other settings, not ranked, not comparable with the rows above."
    yield ""
    yield from heading(["name", "mean", hold("95 % interval"), "note"], left=("name", "note"))
    for figure in figures:
        yield cells([escape(figure.name), f"{figure.value:.2f}", MISSING, escape(figure.note)])
    for row in rows:
        interval = hold(span(row.mean.estimate).strip(" ()")) or MISSING
        yield cells([escape(row.label), percent(row.mean.value), interval, escape(_how(row.group.spec))])
    yield ""
    tasks = list(dict.fromkeys(task for row in rows for task in row.cells))
    for names in side_by_side(tasks):
        yield from heading(["name", *map(escape, names.values())], left=("name",))
        for row in rows:
            values = [percent(row.cells[t].value) if t in row.cells else MISSING for t in names]
            yield cells([escape(row.label), *values])
        yield ""


def _how(spec: RunSpec) -> str:
    """``sample, test split, chat prompt, 2 shots, 100 rows of each task``."""
    shots = f", {spec.shots} shot{'' if spec.shots == 1 else 's'}" if spec.shots else ""
    rows = f", {spec.eval.per_task} rows of each task" if spec.eval.per_task is not None else ""
    return f"{spec.data.label}, {spec.eval.split} split, {spec.prompt} prompt{shots}{rows}"


_CAPTIONS = {
    "means": "Mean against the parameters stored",
    "times": "Mean against the training time",
    "ablations": "What each ablation changes",
    "transfer": "Transfer: gains over training every task alone",
    "curves": "Training loss",
    "gates": "Gate weights by task, block and expert:",
    "skills": "Skills that each task uses:",
    "sweep": "Sweep:",
}


def pictures(folder: str, names: Sequence[str]) -> Iterator[str]:
    """Pictures by file name without suffix, each light and dark."""
    if not names:
        return
    yield from ("## Pictures", "")
    several = len({name.split("-")[0] for name in names}) > 1
    for name in sorted(names, key=_place):
        table, kind, *of = name.split("-", 2)
        caption = " ".join([_CAPTIONS.get(kind, kind), *of]) + (f", {table}" if several else "")
        yield from (f"### {escape(caption)}", "")
        light, dark = (f"{folder}/{name}{variant}.svg" for variant in ("", "-dark"))
        yield (
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img alt="{html.escape(caption)}" src="{light}"></picture>'
        )
        yield ""


def _place(name: str) -> tuple[str, int, str]:
    """By table, then in the order of the captions."""
    table, kind, *of = name.split("-", 2)
    order = list(_CAPTIONS)
    return table, order.index(kind) if kind in order else len(order), "".join(of)
