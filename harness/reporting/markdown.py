"""Parts of Markdown tables. Names that come from a user, a file or a model are escaped."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator, Sequence

_MOST_TASKS = 10  # task columns in one table
PAGE = 120  # A page of a code host has room for a table of about as many characters.
PADDING = 3  # characters of a column besides its text
_SCORE = 6  # characters of a column of scores, at least


def heading(names: Sequence[str], left: Sequence[str] = ("method",)) -> Iterator[str]:
    """The first two lines of a table. The columns named in ``left`` are aligned left, all others right."""
    yield cells(names)
    yield cells([":--" if name in left else "--:" for name in names])


def cells(texts: Sequence[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(texts) + " |"


def escape(text: str) -> str:
    """Text of unknown origin for one table cell: without markup, HTML and line breaks."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(plain, quote=False))


def short_names(tasks: Sequence[str]) -> list[str]:
    """Names without prefixes that several share: CHIP-STS, CHIP-CTC, MedDG become STS, CTC, MedDG; always distinct."""
    names = list(tasks)
    while True:
        heads = Counter(name.split("-")[0] for name in names if "-" in name)
        shorter = [n.split("-", 1)[1] if "-" in n and heads[n.split("-")[0]] > 1 else n for n in names]
        if shorter == names or len(set(shorter)) < len(names) or not all(shorter):
            return names
        names = shorter


def side_by_side(tasks: Sequence[str], others: Sequence[int] = (24, 8)) -> list[dict[str, str]]:
    """The tasks with their short names, split into as few tables as are not wider than a page.

    Args: others: the widths of the other columns of each table, in characters.
    """
    names = dict(zip(tasks, short_names(tasks), strict=True))
    room = PAGE - sum(width + PADDING for width in others)
    for columns in range(min(len(tasks), _MOST_TASKS), 0, -1):
        columns = -(-len(tasks) // -(-len(tasks) // columns))  # As many tables, of about equal numbers of tasks.
        parts = [tasks[i : i + columns] for i in range(0, len(tasks), columns)]
        if columns == 1 or all(sum(max(len(names[t]), _SCORE) + PADDING for t in part) <= room for part in parts):
            return [{t: names[t] for t in part} for part in parts]
    return []


def unbroken(text: str) -> str:
    """The text with non-breaking spaces, so that it stays on one line."""
    return text.replace(" ", "\u00a0")
