"""A leaderboard's tables as SVG: means and costs, ablations, transfer, sweeps; light and dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.board_parts import Sweep
from harness.groups import Group
from harness.leaderboard import Kind, Leaderboard, Table
from harness.markdown import short_names
from harness.plot_style import Style, both, figure, on, plain
from harness.plots_runs import run_plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDE = 20.0  # a numeric sweep over more than this ratio has a logarithmic axis


def plots(board: Leaderboard) -> dict[str, bytes]:
    """SVG files by name (``table1-means.svg``, ``table1-means-dark.svg``, ...); empty pictures are left out."""
    found: dict[str, bytes] = {}
    for number, table in enumerate(board.tables, start=1):
        title = _title(table, board.protocol)
        drawings: dict[str, Callable[[Style], Figure | None]] = {
            "means": partial(_means, table, "parameters"),
            "times": partial(_means, table, "time"),
            "ablations": partial(_ablations, table),
            "transfer": partial(_transfer, table),
            **{f"sweep-{s.name}": partial(_sweep, s) for s in table.sweeps},
            **run_plots(table),
        }
        for name, draw in drawings.items():
            found |= both(f"table{number}-{name}", draw, title)
    return found


def _means(table: Table, cost: str, style: Style) -> Figure | None:
    """Mean with its interval against stored parameters or training time (log); floors as dashed lines."""
    rows = [r for r in table.rows if r.kind is Kind.TRAINED and r.mean.value is not None and not r.beneath]
    costs = [r.group.runs[0].record.parameters.stored if cost == "parameters" else r.seconds for r in rows]
    known = [(r, x) for r, x in zip(rows, costs, strict=True) if x]
    if not known:
        return None
    made, axes = figure(7, 4.5)
    for row, x in known:
        value = 100 * (row.mean.value or 0.0)
        axes.errorbar([x], [value], yerr=_bars(row.group, value), fmt="o", color=style.dot, ecolor=style.ink, capsize=3)
        axes.annotate(plain(row.label), (x, value), xytext=(6, 4), textcoords="offset points", fontsize=8)
    for row in table.rows:
        if row.kind is not Kind.TRAINED and row.mean.value is not None:
            value = 100 * row.mean.value
            axes.axhline(value, color=style.ink, linestyle="--", linewidth=0.8)
            axes.annotate(plain(row.label), (0.01, value), xycoords=("axes fraction", "data"), fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("stored parameters" if cost == "parameters" else "seconds of training, one seed")
    axes.set_ylabel(f"mean of {len(table.mean_of)} tasks, percent")
    return made


def _ablations(table: Table, style: Style) -> Figure | None:
    """The mean of each ablation minus that of its method, with its interval."""
    rows = [(row, row.delta) for row in table.rows if row.delta is not None]
    if not rows:
        return None
    made, axes = figure(7, 1.2 + 0.4 * len(rows))
    for y, (_, delta) in enumerate(reversed(rows)):
        axes.plot([100 * delta.low, 100 * delta.high], [y, y], color=style.ink)
        axes.plot([100 * delta.value], [y], "o", color=style.dot)
    axes.axvline(0, color=style.ink, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [plain(row.label) for row, _ in reversed(rows)])
    axes.set_xlabel("points to the method (95 % interval)")
    return made


def _transfer(table: Table, style: Style) -> Figure | None:
    """Gain of each method on each task over training it alone; bold where the interval leaves out 0."""
    if not table.transfers:
        return None
    names = short_names(table.tasks)
    gains = [[found.gains.get(task) for task in table.tasks] for _, _, found in table.transfers]
    values = [[float("nan") if g is None else 100 * g.value for g in line] for line in gains]
    largest = max((abs(g.value) * 100 for line in gains for g in line if g is not None), default=1.0) or 1.0
    made, axes = figure(2.5 + 0.55 * len(names), 1.6 + 0.4 * len(gains))
    image = axes.imshow(values, cmap=style.around, vmin=-largest, vmax=largest, aspect="auto")
    for y, line in enumerate(gains):
        for x, gain in enumerate(line):
            if gain is not None:
                look: dict[str, Any] = {"weight": "bold" if gain.shown else "normal", "fontsize": 7}
                colour = on(image, 100 * gain.value)
                axes.text(x, y, f"{100 * gain.value:+.1f}", color=colour, ha="center", va="center", **look)
    axes.set_xticks(range(len(names)), [plain(n) for n in names], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(gains)), [plain(label) for label, _, _ in table.transfers], fontsize=8)
    axes.set_xlabel(f"points over {plain(table.transfers[0][1])}; bold: shown (95 % interval)", fontsize=8)
    return made


def _sweep(sweep: Sweep, style: Style) -> Figure | None:
    """Mean with its interval against the first key; a line for each combination of the others."""
    first, others = sweep.keys[0], sweep.keys[1:]
    points = [p for p in sweep.points if p.group.value(None) is not None]
    if not points:
        return None
    ticks = list(dict.fromkeys(p.at[first] for p in points))
    numbers = [_number(t) for t in ticks]
    numeric = [n for n in numbers if n is not None]
    made, axes = figure(6, 4)
    for line in dict.fromkeys(tuple(p.at[k] for k in others) for p in points):
        mine = [p for p in points if tuple(p.at[k] for k in others) == line]
        places = [numbers[ticks.index(p.at[first])] for p in mine]
        xs = [
            x if x is not None and len(numeric) == len(ticks) else ticks.index(p.at[first])
            for x, p in zip(places, mine, strict=True)
        ]
        ys = [100 * (p.group.value(None) or 0.0) for p in mine]
        bars = [_bars(p.group, y) or [[0.0], [0.0]] for p, y in zip(mine, ys, strict=True)]
        errors = [[b[i][0] for b in bars] for i in (0, 1)]
        label = ", ".join(f"{k}={v}" for k, v in zip(others, line, strict=True))
        axes.errorbar(xs, ys, yerr=errors, fmt="o-", capsize=3, label=plain(label) or None)
    if len(numeric) < len(ticks):
        axes.set_xticks(range(len(ticks)), [plain(t) for t in ticks])
    elif min(numeric) > 0 and max(numeric) / min(numeric) > _WIDE:
        axes.set_xscale("log")
    if others:
        axes.legend(fontsize=8)
    axes.set_xlabel(plain(first))
    axes.set_ylabel(f"mean of {plain(sweep.method)}, percent")
    return made


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bars(group: Group, value: float) -> Sequence[Sequence[float]] | None:
    found = group.estimate(None)
    return None if found is None else [[max(0.0, value - 100 * found.low)], [max(0.0, 100 * found.high - value)]]


def _title(table: Table, protocol: str) -> str:
    model = "no base model" if table.spec.model is None else table.spec.model.label
    sample = "embedded sample, no result. " if table.sample else ""
    return plain(f"{sample}{table.spec.data.label}, {model}, {table.spec.eval.split}, protocol {protocol}")
