"""What a difference says, in words: whether it is shown, how large, from how many seeds, what the design could see."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.stats import Estimate


def verdict(a: str, b: str, found: Estimate) -> str:
    """``cgc_lora above moe_lora: not shown, +0.4 (-0.9 to 1.7), 5 seeds; this design sees 1.5``, in percent points."""
    side = "below" if found.value < 0 else "above"
    shown = "shown" if found.shown else "not shown"
    return (
        f"{a} {side} {b}: {shown}, {points(found)}, {seeds_in_words(found.seeds)}; "
        f"this design sees {100 * found.sees:.1f}"
    )


def points(found: Estimate) -> str:
    """``+0.4 (-0.9 to 1.7)``: a difference and its 95 % interval in percent points."""
    return f"{signed(found.value)} ({_plain(found.low)} to {_plain(found.high)})"


def seeds_in_words(seeds: Sequence[int]) -> str:
    """``5 seeds``, ``5 and 3 seeds``, ``1 seed (the interval is about test rows alone)``."""
    if all(n == 1 for n in seeds):
        return "1 seed (the interval is about test rows alone)"
    if len(set(seeds)) == 1:
        return f"{seeds[0]} seeds"
    return " and ".join(map(str, seeds)) + " seeds"


def signed(value: float) -> str:
    """``+0.4``: a difference in percent points; no minus stands before a zero."""
    return f"{_rounded(value):+.1f}"


def _plain(value: float) -> str:
    return f"{_rounded(value):.1f}"


def _rounded(value: float) -> float:
    return round(100 * value, 1) + 0.0  # the sum makes -0.0 a plain zero
