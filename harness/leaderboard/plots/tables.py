"""A leaderboard's tables as SVG: means and costs, ablations, transfer, sweeps; light and dark."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

from harness.leaderboard.plots.runs import run_plots
from harness.leaderboard.plots.style import Style, both, figure, on, plain
from harness.leaderboard.tables import Kind, Leaderboard, Sweep, Table, shown
from harness.reporting.markdown import short_names
from harness.reporting.numbers import count, duration
from harness.scoring.groups import Group
from harness.scoring.verdict import signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ASIDE = 1.03  # of rows of equal cost, each stands this much further right
_MARKERS = ("o", "s", "^", "D")
_FLOORS = ("--", ":", "-.")
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
    made, axes = figure(8.5, 4.4)
    seen: Counter[int] = Counter()
    for number, (row, x) in enumerate(known):
        value = 100 * (row.mean.value or 0.0)
        near = round(math.log(x) / math.log(_ASIDE) / 2)
        place = x * _ASIDE ** seen[near]  # rows of nearly equal cost stand side by side
        seen[near] += 1
        look: dict[str, Any] = {
            "color": style.lines[number % len(style.lines)],
            "marker": _MARKERS[(number + number // len(style.lines)) % len(_MARKERS)],
        }
        bars = _bars(row.group, value)
        axes.errorbar([place], [value], yerr=bars, linestyle="", capsize=3, label=plain(row.label), **look)
    floors = [r for r in table.rows if r.kind is not Kind.TRAINED and r.mean.value is not None]
    for row, dashes in zip(floors, cycle(_FLOORS), strict=False):
        value = 100 * (row.mean.value or 0.0)
        axes.axhline(value, color=style.ink, linestyle=dashes, linewidth=0.9, label=plain(row.label))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: _tick(cost, x))
    axes.xaxis.set_minor_formatter(lambda x, _: _tick(cost, x) if _few(axes.get_xlim(), x) else "")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.set_xlabel("stored parameters" if cost == "parameters" else "training time of one seed")
    axes.set_ylabel(f"mean of {len(table.mean_of)} tasks, percent (95 % interval)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return made


def _tick(cost: str, x: float) -> str:
    """``200 k``, ``1 M``; ``0.2 s``, ``20 min``."""
    return duration(x) if cost != "parameters" else re.sub(r"\.0+(?=\D|$)", "", count(x))


def _few(limits: tuple[float, float], x: float) -> bool:
    """Whether a minor tick of a logarithmic axis has a label: none but 2 and 5 where it is long."""
    low, high = limits
    return f"{x:e}"[0] in ("25" if high / low > _WIDE / 4 else "2345678")


def _ablations(table: Table, style: Style) -> Figure | None:
    """The mean of each ablation minus that of its method, with its interval."""
    rows = [(row, row.delta) for row in table.rows if row.delta is not None]
    if not rows:
        return None
    made, axes = figure(8, 1.5 + 0.3 * len(rows))
    for y, (_, delta) in enumerate(reversed(rows)):
        axes.plot([100 * delta.low, 100 * delta.high], [y, y], color=style.ink)
        axes.plot([100 * delta.value], [y], "o", color=style.dot)
    axes.axvline(0, color=style.ink, linewidth=0.8, linestyle="--")
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_yticks(range(len(rows)), [plain(row.label) for row, _ in reversed(rows)], fontsize=8)
    axes.set_xlabel("points of the mean, ablation minus its method (95 % interval)", fontsize=9)
    return made


def _transfer(table: Table, style: Style) -> Figure | None:
    """Gain of each method on each task over training it alone; bold where the interval leaves out 0."""
    if not table.transfers:
        return None
    names = short_names(table.tasks)
    gains = [[found.gains.get(task) for task in table.tasks] for _, _, found in table.transfers]
    values = [[float("nan") if g is None else 100 * g.value for g in line] for line in gains]
    largest = max((abs(g.value) * 100 for line in gains for g in line if g is not None), default=1.0) or 1.0
    longest = max(len(label) for label, _, _ in table.transfers)
    made, axes = figure(max(6.5, 2.0 + 0.07 * longest + 0.5 * len(names)), 1.8 + 0.3 * len(gains))
    image = axes.imshow(values, cmap=style.around, vmin=-largest, vmax=largest, aspect="auto")
    for y, line in enumerate(gains):
        for x, gain in enumerate(line):
            if gain is not None:
                bold = gain.shown and not table.sample
                look: dict[str, Any] = {"weight": "bold" if bold else "normal", "fontsize": 8}
                colour = on(image, 100 * gain.value)
                axes.text(x, y, signed(gain.value), color=colour, ha="center", va="center", **look)
    axes.set_xticks(range(len(names)), [plain(n) for n in names], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(gains)), [plain(label) for label, _, _ in table.transfers], fontsize=8)
    words = "" if table.sample else "\nbold: shown"
    made.colorbar(image, ax=axes, pad=0.01).set_label(f"points over {plain(table.transfers[0][1])}{words}", fontsize=8)
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
        label = ", ".join(f"{k}={shown(k, v)}" for k, v in zip(others, line, strict=True))
        axes.errorbar(xs, ys, yerr=errors, fmt="o-", capsize=3, label=plain(label) or None)
    if len(numeric) < len(ticks):
        axes.set_xticks(range(len(ticks)), [plain(shown(first, t)) for t in ticks])
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
