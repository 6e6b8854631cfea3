"""Parts of Markdown tables. Names that came from a user, a file or a model are escaped."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from harness.score import MISSING, percent
from harness.stats import Estimate

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


def count(n: float) -> str:
    """``0``, ``950``, ``198.7 k``, ``3.18 M``, ``7.62 G``: of parameters."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= unit:
            digits = 1 if letter == "k" else 2
            return f"{n / unit:.{digits}f} {letter}"
    return f"{n:g}"


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds is None:
        return MISSING
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(n_bytes: int | None) -> str:
    """``310 MiB``, ``14.2 GiB``."""
    if n_bytes is None:
        return MISSING
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def span(found: Estimate | None) -> str:
    """`` (80.1 to 86.0)``: a 95 % interval in percent; nothing where there is none."""
    return "" if found is None else f" ({percent(found.low)} to {percent(found.high)})"
