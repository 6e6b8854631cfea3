"""Numbers for people."""

from __future__ import annotations

from typing import Final


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


MISSING: Final = "–"


def percent(value: float | None) -> str:
    """0.8312 as ``83.1``; missing as –."""
    return MISSING if value is None else f"{100 * value:.1f}"


def percent_range(ends: tuple[float, float] | None) -> str:
    """(0.801, 0.86) as ``80.1 to 86.0``; missing as –."""
    return MISSING if ends is None else f"{percent(ends[0])} to {percent(ends[1])}"
