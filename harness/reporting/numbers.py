"""Numbers as people read them in tables, notes and plots. A missing number is None and prints as ``–``."""

from __future__ import annotations

from typing import Final

MISSING: Final = "–"


def or_missing(value: object | None) -> str:
    """A value as text; None as –."""
    return MISSING if value is None else str(value)


def number(value: float | None, digits: int = 0, *, signed: bool = False) -> str:
    """``1,339``, ``0.0123``, ``+0.0123``: a number with a fixed count of decimals; None as –."""
    if value is None:
        return MISSING
    return f"{value:{'+' if signed else ''},.{digits}f}"


def percent(value: float | None) -> str:
    """0.8312 as ``83.1``; None as –."""
    return MISSING if value is None else f"{100 * value:.1f}"


def percent_range(ends: tuple[float, float] | None) -> str:
    """(0.801, 0.86) as ``80.1 to 86.0``; None as –."""
    return MISSING if ends is None else f"{percent(ends[0])} to {percent(ends[1])}"


def points(value: float | None) -> str:
    """A difference of 0.004 as ``+0.4`` percentage points, never ``-0.0``; None as –."""
    return MISSING if value is None else f"{_rounded(value):+.1f}"


def points_range(low: float, high: float) -> str:
    """The interval (-0.009, 0.017) of a difference as ``-0.9 to 1.7`` percentage points."""
    return f"{_rounded(low):.1f} to {_rounded(high):.1f}"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """``0.984 [0.970, 0.990]``: a value and its interval; only the value if it has no interval; None as –."""
    if value is None:
        return MISSING
    if low is None or high is None:
        return f"{value:.3f}"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def counted(n: int, noun: str) -> str:
    """``1 task``, ``2 tasks``, ``1,339 examples``: a count with its noun, whose plural ends in s."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def p_value(value: float | None) -> str:
    """``0.0123``, ``1e-05``: three significant digits; None as –."""
    return MISSING if value is None else f"{value:.3g}"


def share(percents: float | None) -> str:
    """``0.5``, ``35.2``, ``191``: a fraction in percent to three significant digits; None as –."""
    return MISSING if percents is None else f"{percents:.3g}"


def count(n: float) -> str:
    """``0``, ``950``, ``198.7 k``, ``3.18 M``, ``7.62 G``: a number of parameters."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= unit:
            digits = 1 if letter == "k" else 2
            return f"{n / unit:.{digits}f} {letter}"
    return f"{n:g}"


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``45 s``, ``12 min``, ``3 h 05 min``; None as –."""
    if seconds is None:
        return MISSING
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(n_bytes: int | None) -> str:
    """``310 MiB``, ``14.2 GiB``; None as –."""
    if n_bytes is None:
        return MISSING
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def _rounded(value: float) -> float:
    return round(100 * value, 1) + 0.0  # Adding 0.0 turns -0.0 into 0.0.
