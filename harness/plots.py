"""A leaderboard's tables as SVG: means against parameters, ablations, transfer. Equal input gives equal bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from harness.leaderboard import Kind, Leaderboard, Row, Table
from harness.leaderboard_text import short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE: Final = "#444444"
_DOT: Final = "#1f6fb2"


def plots(board: Leaderboard) -> dict[str, bytes]:
    """SVG files by name (``table1-means.svg``, ...); a picture without anything to show is left out."""
    found = {}
    for number, table in enumerate(board.tables, start=1):
        for name, draw in (("means", _means), ("ablations", _ablations), ("transfer", _transfer)):
            figure = draw(table)
            if figure is not None:
                figure.suptitle(_title(table, board.protocol), fontsize=9)
                found[f"table{number}-{name}.svg"] = _svg(figure)
    return found


def _means(table: Table) -> Figure | None:
    """Mean with its interval against stored parameters (log), trivial and untrained rows as dashed lines."""
    rows = [r for r in table.rows if r.kind is Kind.TRAINED and r.mean.value is not None and not r.beneath]
    if not rows:
        return None
    figure, axes = _figure(7, 4.5)
    for row in rows:
        x, value = row.group.runs[0].record.parameters.stored, 100 * (row.mean.value or 0.0)
        axes.errorbar([x], [value], yerr=_bars(row, value), fmt="o", color=_DOT, ecolor=_LINE, capsize=3)
        axes.annotate(_plain(row.label), (x, value), xytext=(6, 4), textcoords="offset points", fontsize=8)
    for row in table.rows:
        if row.kind is not Kind.TRAINED and row.mean.value is not None:
            axes.axhline(100 * row.mean.value, color=_LINE, linestyle="--", linewidth=0.8)
            axes.annotate(
                _plain(row.label), (0.01, 100 * row.mean.value), xycoords=("axes fraction", "data"), fontsize=7
            )
    axes.set_xscale("log")
    axes.set_xlabel("stored parameters")
    axes.set_ylabel(f"mean of {len(table.mean_of)} tasks, percent")
    return figure


def _ablations(table: Table) -> Figure | None:
    """The mean of each ablation minus that of its method, with its interval."""
    rows = [row for row in table.rows if row.delta is not None]
    if not rows:
        return None
    figure, axes = _figure(7, 1.2 + 0.4 * len(rows))
    for y, row in enumerate(reversed(rows)):
        if row.delta is not None:
            axes.plot([100 * row.delta.low, 100 * row.delta.high], [y, y], color=_LINE)
            axes.plot([100 * row.delta.value], [y], "o", color=_DOT)
    axes.axvline(0, color=_LINE, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [_plain(row.label) for row in reversed(rows)])
    axes.set_xlabel("points to the method (95 % interval)")
    return figure


def _transfer(table: Table) -> Figure | None:
    """Gain of each method on each task over training it alone; bold where the interval leaves out 0."""
    if not table.transfers:
        return None
    names = short_names(table.tasks)
    gains = [[found.gains.get(task) for task in table.tasks] for _, _, found in table.transfers]
    values = [[float("nan") if g is None else 100 * g.value for g in line] for line in gains]
    largest = max((abs(g.value) * 100 for line in gains for g in line if g is not None), default=1.0) or 1.0
    figure, axes = _figure(2.5 + 0.55 * len(names), 1.6 + 0.4 * len(gains))
    axes.imshow(values, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    for y, line in enumerate(gains):
        for x, gain in enumerate(line):
            if gain is not None:
                style: dict[str, Any] = {
                    "weight": "bold" if gain.shown else "normal",
                    "fontsize": 7,
                    "ha": "center",
                    "va": "center",
                }
                colour = "white" if abs(100 * gain.value) > 0.6 * largest else "black"
                axes.text(x, y, f"{100 * gain.value:+.1f}", color=colour, **style)
    axes.set_xticks(range(len(names)), [_plain(n) for n in names], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(gains)), [_plain(label) for label, _, _ in table.transfers], fontsize=8)
    axes.set_xlabel(f"points over {_plain(table.transfers[0][1])}; bold: shown (95 % interval)", fontsize=8)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure) -> bytes:
    from matplotlib import rc_context

    file = io.BytesIO()
    settings: dict[str, Any] = {"svg.hashsalt": "harness", "svg.fonttype": "none"}
    with rc_context(settings):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _bars(row: Row, value: float) -> Sequence[Sequence[float]] | None:
    found = row.mean.estimate
    return None if found is None else [[max(0.0, value - 100 * found.low)], [max(0.0, 100 * found.high - value)]]


def _title(table: Table, protocol: str) -> str:
    model = "no base model" if table.spec.model is None else table.spec.model.label
    sample = "embedded sample, no result. " if table.sample else ""
    return _plain(f"{sample}{table.spec.data.label}, {model}, {table.spec.eval.split}, protocol {protocol}")


def _plain(text: str) -> str:
    """Text from outside: a dollar would start a formula."""
    return text.replace("$", r"\$")
