"""A transfer matrix for people: a table, a CSV file, and its picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from harness.errors import unknown
from harness.leaderboard.plots.style import Style, escape_dollars, figure, legible_colour, light_and_dark
from harness.reporting.markdown import short_names
from harness.reporting.numbers import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from harness.store.transfer import Transfer

BASE: Final = "base model"
_MOST_NUMBERS: Final = 24  # A matrix with at most this many columns has its values printed.


def protocol_of(transfer: Transfer, protocol: str | None) -> str:
    """The protocol to print; by default the suite's first. Raises: UsageError for one that the scores do not have."""
    known = transfer.base.root
    if protocol is not None and protocol not in known:
        raise unknown("protocol", protocol, known)
    return protocol or next(iter(known))


def render_transfer(transfer: Transfer, protocol: str) -> str:
    """The matrix as plain text, in percent; a task's number stands for its name in the heading."""
    from tabulate import tabulate

    numbers = [str(i + 1) for i in range(len(transfer.tasks))]
    names = [f"{n} {task}" for n, task in zip(numbers, transfer.tasks, strict=True)]
    lines = [
        [label, *map(percent, values)] for label, values in zip([BASE, *names], _rows(transfer, protocol), strict=True)
    ]
    align = ("left", *["right"] * len(numbers))
    about = f"protocol {protocol}; scores in percent; line: the task whose weights are used; column: evaluated task"
    header = ("weights of", *numbers)
    return f"{about}\n{tabulate(lines, header, tablefmt='simple', disable_numparse=True, colalign=align)}"


def csv_of(transfer: Transfer) -> bytes:
    """One line for each protocol, weights (empty: the base model) and evaluated task."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["protocol", "weights", "task", "headline", "value", "low", "high", "n"])
    for protocol in transfer.base.root:
        for owner in (None, *transfer.tasks):
            scores = (transfer.base if owner is None else transfer.adapters[owner]).root[protocol]
            for task, score in scores.tasks.items():
                low, high = score.ci95 or ("", "")
                value = "" if score.value is None else score.value
                writer.writerow([protocol, owner or "", task, score.headline, value, low, high, score.n])
    return file.getvalue().encode()


def transfer_pictures(transfer: Transfer, protocol: str, title: str) -> dict[str, bytes]:
    """The light and the dark picture by file name; empty where no task has a score."""
    return light_and_dark("transfer", partial(_draw, transfer, protocol), escape_dollars(title))


def _rows(transfer: Transfer, protocol: str) -> list[list[float | None]]:
    """Scores of the base model, then of the weights of each task: (1 + T, T)."""
    owners: Sequence[str | None] = (None, *transfer.tasks)
    return [[transfer.value(protocol, owner, task) for task in transfer.tasks] for owner in owners]


def _draw(transfer: Transfer, protocol: str, style: Style) -> Figure | None:
    """Numbers: scores. Colours: how far each is above or below that of the evaluated task's own weights."""
    rows = _rows(transfer, protocol)
    own = [transfer.value(protocol, task, task) for task in transfer.tasks]
    gains = [[_points(value, best) for value, best in zip(line, own, strict=True)] for line in rows]
    largest = max((abs(gain) for line in gains for gain in line if gain == gain), default=None)
    if largest is None:
        return None
    names = [escape_dollars(name) for name in short_names(transfer.tasks)]
    picture, axes = figure(max(5.0, 2.4 + 0.5 * len(names)), 2.0 + 0.32 * len(rows))
    limit = largest or 1.0
    image = axes.imshow(gains, cmap=style.around, vmin=-limit, vmax=limit, aspect="auto")
    if len(names) <= _MOST_NUMBERS:
        for y, line in enumerate(rows):
            for x, value in enumerate(line):
                if value is not None:
                    look: dict[str, Any] = {"fontsize": 7, "color": legible_colour(image, gains[y][x])}
                    axes.text(x, y, percent(value), ha="center", va="center", **look)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), [BASE, *names], fontsize=8)
    axes.set_xlabel("evaluated task", fontsize=9)
    axes.set_ylabel("weights of", fontsize=9)
    picture.colorbar(image, ax=axes, pad=0.01).set_label("percentage points over the task's own weights", fontsize=8)
    return picture


def _points(value: float | None, own: float | None) -> float:
    return float("nan") if value is None or own is None else 100 * (value - own)
