"""What single runs leave for pictures: how the loss fell, which experts each task uses, which skills."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.leaderboard import Kind, Row, Table
from harness.markdown import short_names
from harness.plot_style import Style, figure, on, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Weights = Mapping[str, Mapping[str, Sequence[float]]]  # gate -> task -> a number for each expert

_LINES = 12  # of one picture
_SMOOTH = 20  # parts that a curve is averaged in
_BLOCK = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_NUMBERS = 12  # columns up to which a matrix shows its numbers


def run_plots(table: Table) -> dict[str, Callable[[Style], Figure | None]]:
    """Pictures by name, from the first seed of each row that is no ablation."""
    rows = [r for r in table.rows if r.kind is Kind.TRAINED and not r.beneath]
    found: dict[str, Callable[[Style], Figure | None]] = {"curves": partial(_curves, rows[:_LINES])}
    for row in rows:
        for kind, draw in (("gates", _gates), ("skills", _skills)):
            weights = _artefact(row, kind)
            if weights:
                found[f"{kind}-{_slug(row.label)}"] = partial(draw, row, table.tasks, weights)
    return found


def _curves(rows: Sequence[Row], style: Style) -> Figure | None:
    """The training loss, averaged over parts of the training; stages follow one another."""
    curves = [(row, losses) for row in rows if len(losses := _losses(row.group.runs[0].directory.path)) > 1]
    if not curves:
        return None
    made, axes = figure(7, 4.5)
    for row, losses in curves:
        parts = np.array_split(np.asarray(losses), min(_SMOOTH, len(losses)))
        middles = (np.arange(len(parts)) + 0.5) / len(parts)
        axes.plot(middles, [float(p.mean()) for p in parts], label=plain(row.label))
    axes.set_xlabel("share of the training")
    axes.set_ylabel("training loss")
    axes.legend(fontsize=7)
    return made


def _losses(run: Path) -> list[float]:
    logs = [p for p in (run / "train.jsonl", *sorted((run / "train").glob("*.jsonl"))) if p.exists()]
    lines = [json.loads(line) for log in logs for line in log.read_text("utf-8").splitlines()]
    return [line["loss"] for line in lines if isinstance(line.get("loss"), float)]


def _gates(row: Row, tasks: Sequence[str], weights: Weights, style: Style) -> Figure | None:
    """For each task a panel of blocks (gates in one block averaged) by experts."""
    shown = [t for t in tasks if any(t in of_gate for of_gate in weights.values())]
    blocks = _blocks(weights)
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    from matplotlib.figure import Figure

    made = Figure(figsize=(1.2 + 1.9 * columns, 1.1 + lines * min(2.4, 0.7 + 0.12 * len(blocks))), layout="constrained")
    panels = np.atleast_1d(made.subplots(lines, columns, squeeze=False).ravel())
    top = max(abs(w) for of_gate in weights.values() for line in of_gate.values() for w in line) or 1.0
    image = None
    for panel, task, name in zip(panels, shown, short_names(shown), strict=False):
        matrix = np.stack([_mean([weights[g][task] for g in gates if task in weights[g]]) for gates in blocks.values()])
        image = panel.imshow(matrix, cmap=style.upwards, vmin=min(0.0, float(matrix.min())), vmax=top, aspect="auto")
        panel.set_title(plain(name), fontsize=8)
        panel.set_xticks([])
        panel.set_yticks([])
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    if image is not None:
        made.colorbar(image, ax=list(panels), shrink=0.6)
    made.supxlabel(f"experts of {plain(row.label)}", fontsize=8)
    made.supylabel("blocks, the first on top" if len(blocks) > 1 else "all layers", fontsize=8)
    return made


def _skills(row: Row, tasks: Sequence[str], weights: Weights, style: Style) -> Figure | None:
    """Which skills each task uses, the mean over layers."""
    shown = [t for t in tasks if any(t in of_gate for of_gate in weights.values())]
    matrix = np.stack([_mean([of_gate[t] for of_gate in weights.values() if t in of_gate]) for t in shown])
    made, axes = figure(2.0 + 0.45 * matrix.shape[1], 1.4 + 0.32 * len(shown))
    image = axes.imshow(matrix, cmap=style.upwards, aspect="auto")
    if matrix.shape[1] <= _NUMBERS:
        for (y, x), value in np.ndenumerate(matrix):
            colour = on(image, float(value))
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_yticks(range(len(shown)), [plain(n) for n in short_names(shown)], fontsize=8)
    axes.set_xticks(range(matrix.shape[1]), [str(i + 1) for i in range(matrix.shape[1])], fontsize=8)
    axes.set_xlabel(f"skills of {plain(row.label)}, the task's own last; mean over layers", fontsize=8)
    return made


def _blocks(weights: Weights) -> dict[int, list[str]]:
    """The gates of each block of the model, by its number; -1 for gates outside of blocks."""
    found: dict[int, list[str]] = {}
    for gate in weights:
        number = _BLOCK.search(gate)
        found.setdefault(int(number.group(1)) if number else -1, []).append(gate)
    return dict(sorted(found.items()))


def _mean(lines: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = np.asarray(lines, dtype=np.float64).mean(axis=0)
    return mean


def _artefact(row: Row, name: str) -> Weights | None:
    """A run's gate weights; None where it keeps none, or where clusters keep several."""
    path = row.group.runs[0].directory.artefacts / f"{name}.json"
    if not path.exists():
        return None
    value: Any = json.loads(path.read_text("utf-8"))
    flat = [line for of_gate in value.values() for line in of_gate.values()]
    return value if flat and len({len(line) for line in flat}) == 1 and all(_numbers(line) for line in flat) else None


def _numbers(line: object) -> bool:
    return isinstance(line, list) and all(isinstance(x, int | float) for x in line)


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", label).strip("-")
