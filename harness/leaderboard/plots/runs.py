"""Pictures of single runs: training loss, gate weights by expert, skills by task."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness.leaderboard.plots.digest import Digest, read_digest
from harness.leaderboard.plots.style import Style, escape_dollars, figure, legible_colour
from harness.leaderboard.tables import Kind, Row, Table
from harness.reporting.markdown import short_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_CURVES: Final = 12  # A picture has at most this many curves.
_MOST_NUMBERS: Final = 12  # A matrix with at most this many columns has its values printed.
_DASHES: Final = ("-", "--", ":")


def run_plots(table: Table) -> dict[str, Callable[[Style], Figure | None]]:
    """Pictures by name, of the first seed of each row that is not an ablation."""
    rows = [r for r in table.rows if r.kind is Kind.TRAINED and not r.nested]
    digests = [(r, read_digest(r.group.runs[0].directory)) for r in rows]
    pictures: dict[str, Callable[[Style], Figure | None]] = {"curves": partial(_curves, digests[:_MOST_CURVES])}
    for row, digest in digests:
        if digest.gates:
            pictures[f"gates-{_slug(row.label)}"] = partial(_gates, row, table.tasks, digest)
        if digest.skills:
            pictures[f"skills-{_slug(row.label)}"] = partial(_skills, row, table.tasks, digest)
    return pictures


def _curves(digests: Sequence[tuple[Row, Digest]], style: Style) -> Figure | None:
    """The training loss, averaged over equal parts of the training; stages follow one another."""
    curves = [(row, digest.losses) for row, digest in digests if len(digest.losses) > 1]
    if not curves:
        return None
    picture, axes = figure(8, 4.2)
    for i, (row, losses) in enumerate(curves):
        middles = (np.arange(len(losses)) + 0.5) / len(losses)
        axes.plot(100 * middles, losses, label=escape_dollars(row.label), linestyle=_DASHES[i // len(style.lines)])
    axes.set_xlim(0, 100)
    axes.set_xlabel("training steps, percent")
    axes.set_ylabel("training loss")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return picture


def _gates(row: Row, tasks: Sequence[str], digest: Digest, style: Style) -> Figure | None:
    """The gate weights: a panel for each task, blocks of the model by experts."""
    from matplotlib.figure import Figure

    drawn = [t for t in tasks if t in digest.gates]
    n_blocks, n_experts = np.shape(digest.gates[drawn[0]])
    columns = min(4, len(drawn))
    lines = -(-len(drawn) // columns)
    picture = Figure(
        figsize=(1.2 + 1.9 * columns, 1.1 + lines * min(2.4, 0.75 + 0.12 * n_blocks)), layout="constrained"
    )
    panels = picture.subplots(lines, columns, squeeze=False).ravel()
    every = [w for of_task in digest.gates.values() for line in of_task for w in line]
    top = max(map(abs, every)) or 1.0
    image = None
    for number, (panel, task, name) in enumerate(zip(panels, drawn, short_names(drawn), strict=False)):
        matrix = np.asarray(digest.gates[task])
        image = panel.imshow(matrix, cmap=style.upwards, vmin=min(0.0, *every), vmax=top, aspect="auto")
        panel.set_title(escape_dollars(name), fontsize=9)
        bottom, left = number + columns >= len(drawn), number % columns == 0
        panel.set_xticks(_ends(n_experts), _ends(n_experts, 1) if bottom else [], fontsize=8)
        panel.set_yticks(_ends(n_blocks), _ends(n_blocks, 1) if left else [], fontsize=8)
    for panel in panels[len(drawn) :]:
        panel.set_axis_off()
    if image is not None:
        picture.colorbar(image, ax=list(panels), shrink=0.8, label="weight")
    picture.supxlabel(f"expert of {escape_dollars(row.label)}", fontsize=9)
    picture.supylabel("block of the model", fontsize=9)
    return picture


def _ends(n: int, first: int = 0) -> list[int]:
    """All numbers up to eight; of more numbers, the first and the last."""
    return list(range(first, first + n)) if n <= 8 else [first, first + n - 1]


def _skills(row: Row, tasks: Sequence[str], digest: Digest, style: Style) -> Figure | None:
    """The skills that each task uses, averaged over layers."""
    drawn = [t for t in tasks if t in digest.skills]
    matrix = np.asarray([digest.skills[t] for t in drawn])
    picture, axes = figure(2.8 + 0.45 * matrix.shape[1], 1.4 + 0.32 * len(drawn))
    image = axes.imshow(matrix, cmap=style.upwards, aspect="auto", vmin=min(0.0, float(matrix.min())))
    if matrix.shape[1] <= _MOST_NUMBERS:
        for (y, x), value in np.ndenumerate(matrix):
            look: dict[str, Any] = {"fontsize": 8, "color": legible_colour(image, float(value))}
            axes.text(x, y, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", **look)
    axes.set_yticks(range(len(drawn)), [escape_dollars(n) for n in short_names(drawn)], fontsize=9)
    axes.set_xticks(range(matrix.shape[1]), [str(i + 1) for i in range(matrix.shape[1])], fontsize=9)
    axes.set_xlabel(f"skill of {escape_dollars(row.label)}, averaged over layers", fontsize=9)
    picture.colorbar(image, ax=axes, label="weight")
    return picture


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", label).strip("-")
