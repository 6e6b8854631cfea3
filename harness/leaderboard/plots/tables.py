"""A leaderboard's tables as SVG, light and dark: means and costs, ablations, transfer, sweeps."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

from harness.leaderboard.plots.runs import run_plots
from harness.leaderboard.plots.style import Style, escape_dollars, figure, legible_colour, light_and_dark
from harness.leaderboard.tables import GridPoint, Kind, Leaderboard, Row, Sweep, Table, grid_value
from harness.reporting.markdown import short_names
from harness.reporting.numbers import count, counted, duration, points
from harness.scoring.groups import SeedGroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ASIDE: Final = 1.03  # Rows of nearly equal cost are drawn next to each other, each at this multiple of the last.
_MARKERS: Final = ("o", "s", "^", "D")
_BASELINES: Final = ("--", ":", "-.")
_WIDE: Final = 20.0  # A numeric axis whose largest value is more than this multiple of the smallest is logarithmic.


def plots(board: Leaderboard) -> dict[str, bytes]:
    """SVG files by name (``table1-means.svg``, ``table1-means-dark.svg``, …); pictures without content are left out."""
    pictures: dict[str, bytes] = {}
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
            pictures |= light_and_dark(f"table{number}-{name}", draw, title)
    return pictures


def _means(table: Table, cost: str, style: Style) -> Figure | None:
    """Means with their intervals against stored parameters or training time; baselines as dashed lines."""
    rows = [r for r in table.rows if r.kind is Kind.TRAINED and r.mean.value is not None and not r.nested]
    costs = [r.group.runs[0].record.parameters.stored if cost == "parameters" else r.seconds for r in rows]
    known = [(r, x) for r, x in zip(rows, costs, strict=True) if x]
    if not known:
        return None
    picture, axes = figure(8.5, 4.4)
    _draw_means(axes, known, style)
    baselines = [r for r in table.rows if r.kind is not Kind.TRAINED and r.mean.value is not None]
    for row, dashes in zip(baselines, cycle(_BASELINES), strict=False):
        value = 100 * (row.mean.value or 0.0)
        axes.axhline(value, color=style.ink, linestyle=dashes, linewidth=0.9, label=escape_dollars(row.label))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: _tick(cost, x))
    axes.xaxis.set_minor_formatter(lambda x, _: _tick(cost, x) if _few(axes.get_xlim(), x) else "")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.set_xlabel("stored parameters" if cost == "parameters" else "training time of one seed")
    axes.set_ylabel(f"mean of {counted(len(table.mean_of), 'task')}, percent (95 % interval)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return picture


def _draw_means(axes: Axes, rows: Sequence[tuple[Row, float]], style: Style) -> None:
    """A marker with its interval for each row and its cost."""
    n_near: Counter[int] = Counter()
    for number, (row, cost) in enumerate(rows):
        value = 100 * (row.mean.value or 0.0)
        near = round(math.log(cost) / math.log(_ASIDE) / 2)
        place = cost * _ASIDE ** n_near[near]
        n_near[near] += 1
        look: dict[str, Any] = {
            "color": style.lines[number % len(style.lines)],
            "marker": _MARKERS[(number + number // len(style.lines)) % len(_MARKERS)],
        }
        bars = _bars(row.group, value)
        axes.errorbar([place], [value], yerr=bars, linestyle="", capsize=3, label=escape_dollars(row.label), **look)


def _tick(cost: str, x: float) -> str:
    """``200 k``, ``1 M``; ``0.2 s``, ``20 min``."""
    return duration(x) if cost != "parameters" else re.sub(r"\.0+(?=\D|$)", "", count(x))


def _few(limits: tuple[float, float], x: float) -> bool:
    """Whether a minor tick of a logarithmic axis has a label: only 2 and 5 on a long axis."""
    low, high = limits
    return f"{x:e}"[0] in ("25" if high / low > _WIDE / 4 else "2345678")


def _ablations(table: Table, style: Style) -> Figure | None:
    """The mean of each ablation minus that of its method, with its interval."""
    deltas = [(row, row.delta.estimate) for row in table.rows if row.delta is not None]
    rows = [(row, delta) for row, delta in deltas if delta is not None]
    if not rows:
        return None
    picture, axes = figure(8, 1.5 + 0.3 * len(rows))
    for y, (_, delta) in enumerate(reversed(rows)):
        axes.plot([100 * delta.low, 100 * delta.high], [y, y], color=style.ink)
        axes.plot([100 * delta.value], [y], "o", color=style.dot)
    axes.axvline(0, color=style.ink, linewidth=0.8, linestyle="--")
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_yticks(range(len(rows)), [escape_dollars(row.label) for row, _ in reversed(rows)], fontsize=8)
    axes.set_xlabel("percentage points of the mean, ablation minus its method (95 % interval)", fontsize=9)
    return picture


def _transfer(table: Table, style: Style) -> Figure | None:
    """The gain of each method on each task over training it alone; significant gains in bold."""
    if not table.transfers:
        return None
    names = short_names(table.tasks)
    gains = [[row.gains.gains.get(task) for task in table.tasks] for row in table.transfers]
    estimates = [[None if gain is None else gain.estimate for gain in line] for line in gains]
    values = [[float("nan") if found is None else 100 * found.value for found in line] for line in estimates]
    largest = max((abs(100 * e.value) for line in estimates for e in line if e is not None), default=1.0) or 1.0
    longest = max(len(row.label) for row in table.transfers)
    picture, axes = figure(max(6.5, 2.0 + 0.07 * longest + 0.5 * len(names)), 1.8 + 0.3 * len(gains))
    image = axes.imshow(values, cmap=style.around, vmin=-largest, vmax=largest, aspect="auto")
    for y, line in enumerate(gains):
        for x, gain in enumerate(line):
            if gain is not None and gain.estimate is not None:
                bold = gain.significant and not table.sample
                look: dict[str, Any] = {"weight": "bold" if bold else "normal", "fontsize": 8}
                colour = legible_colour(image, 100 * gain.estimate.value)
                axes.text(x, y, points(gain.estimate.value), color=colour, ha="center", va="center", **look)
    axes.set_xticks(range(len(names)), [escape_dollars(n) for n in names], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(gains)), [escape_dollars(row.label) for row in table.transfers], fontsize=8)
    words = "" if table.sample else "\nbold: significant"
    reference = escape_dollars(table.transfers[0].reference)
    picture.colorbar(image, ax=axes, pad=0.01).set_label(f"percentage points over {reference}{words}", fontsize=8)
    return picture


@dataclass(frozen=True, kw_only=True)
class _GridAxis:
    """The horizontal axis of a sweep: at the values of the first key if all are numbers, else evenly spaced."""

    key: str
    places: Mapping[str, float]
    numeric: bool

    @classmethod
    def of(cls, key: str, points: Sequence[GridPoint]) -> _GridAxis:
        values = list(dict.fromkeys(p.at[key] for p in points))
        numbers = [_number(v) for v in values]
        known = [n for n in numbers if n is not None]
        numeric = len(known) == len(values)
        places = dict(zip(values, known if numeric else range(len(values)), strict=True))
        return cls(key=key, places=places, numeric=numeric)

    def apply(self, axes: Axes) -> None:
        """Set ticks, scale and label."""
        low, high = min(self.places.values()), max(self.places.values())
        if not self.numeric:
            axes.set_xticks(range(len(self.places)), [escape_dollars(grid_value(self.key, v)) for v in self.places])
        elif low > 0 and high / low > _WIDE:
            axes.set_xscale("log")
        axes.set_xlabel(escape_dollars(self.key))


def _sweep(sweep: Sweep, style: Style) -> Figure | None:
    """Means with their intervals against the first key of the grid, a line for each combination of the others."""
    known = [p for p in sweep.points if p.group.value(None) is not None]
    if not known:
        return None
    axis = _GridAxis.of(sweep.keys[0], known)
    picture, axes = figure(6, 4)
    for label, points_of_line in _lines(known, sweep.keys[1:]):
        xs = [axis.places[p.at[axis.key]] for p in points_of_line]
        ys = [100 * (p.group.value(None) or 0.0) for p in points_of_line]
        bars = [_bars(p.group, y) or [[0.0], [0.0]] for p, y in zip(points_of_line, ys, strict=True)]
        errors = [[bar[end][0] for bar in bars] for end in (0, 1)]
        axes.errorbar(xs, ys, yerr=errors, fmt="o-", capsize=3, label=label or None)
    axis.apply(axes)
    if len(sweep.keys) > 1:
        axes.legend(fontsize=8)
    axes.set_ylabel(f"mean of {escape_dollars(sweep.method)}, percent")
    return picture


def _lines(known: Sequence[GridPoint], keys: Sequence[str]) -> Iterator[tuple[str, list[GridPoint]]]:
    """The points by their values of ``keys``, each group with a label such as ``method.rank=8``."""
    by_values: dict[tuple[str, ...], list[GridPoint]] = {}
    for point in known:
        by_values.setdefault(tuple(point.at[k] for k in keys), []).append(point)
    for values, of_line in by_values.items():
        yield escape_dollars(", ".join(f"{k}={grid_value(k, v)}" for k, v in zip(keys, values, strict=True))), of_line


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bars(group: SeedGroup, value: float) -> Sequence[Sequence[float]] | None:
    """The lengths of an error bar below and above the value, in percentage points."""
    estimate = group.estimate(None)
    if estimate is None:
        return None
    return [[max(0.0, value - 100 * estimate.low)], [max(0.0, 100 * estimate.high - value)]]


def _title(table: Table, protocol: str) -> str:
    model = "no base model" if table.spec.model is None else table.spec.model.label
    sample = "embedded sample, not a result. " if table.sample else ""
    return escape_dollars(f"{sample}{table.spec.data.label}, {model}, {table.spec.eval.split}, protocol {protocol}")
