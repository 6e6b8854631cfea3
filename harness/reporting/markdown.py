"""Parts of Markdown tables. Names that come from a user, a file or a model are escaped."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator, Sequence

_MOST_TASKS = 10  # task columns in one table


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


def side_by_side(tasks: Sequence[str]) -> list[dict[str, str]]:
    """The tasks with their short names, split into as many tables as the width of a page on GitHub requires."""
    names = dict(zip(tasks, short_names(tasks), strict=True))
    n_tables = -(-len(tasks) // _MOST_TASKS) or 1
    columns = -(-len(tasks) // n_tables)
    return [{t: names[t] for t in tasks[i : i + columns]} for i in range(0, len(tasks), columns or 1)]


def unbroken(text: str) -> str:
    """The text with non-breaking spaces, so that it stays on one line."""
    return text.replace(" ", "\u00a0")
