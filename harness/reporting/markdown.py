"""Parts of Markdown tables. Names that came from a user, a file or a model are escaped."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator, Sequence

_COLUMNS = 10  # tasks of one table


def heading(names: Sequence[str], left: Sequence[str] = ("method",)) -> Iterator[str]:
    """The first two lines of a table; columns are right-aligned but for those of ``left``."""
    yield cells(names)
    yield cells([":--" if name in left else "--:" for name in names])


def cells(texts: Sequence[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(texts) + " |"


def escape(text: str) -> str:
    """Text of unknown origin in one cell of a Markdown table: no markup, no HTML, no end of line."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(plain, quote=False))


def short_names(tasks: Sequence[str]) -> list[str]:
    """Names without the prefixes that several share: CHIP-STS, CHIP-CTC, MedDG -> STS, CTC, MedDG; always distinct."""
    names = list(tasks)
    while True:
        heads = Counter(name.split("-")[0] for name in names if "-" in name)
        shorter = [n.split("-", 1)[1] if "-" in n and heads[n.split("-")[0]] > 1 else n for n in names]
        if shorter == names or len(set(shorter)) < len(names) or not all(shorter):
            return names
        names = shorter


def side_by_side(tasks: Sequence[str]) -> list[dict[str, str]]:
    """Tasks with their short names, in as many tables as a page of GitHub's width needs."""
    names = dict(zip(tasks, short_names(tasks), strict=True))
    n = -(-len(tasks) // _COLUMNS) or 1
    size_of = -(-len(tasks) // n)
    return [{t: names[t] for t in tasks[i : i + size_of]} for i in range(0, len(tasks), size_of or 1)]


def hold(text: str) -> str:
    """Text that is not broken into lines."""
    return text.replace(" ", "\u00a0")
