"""What a difference says, in words: whether it is shown, how large, from how many seeds, what the design could see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.reporting.numbers import percent
from harness.scoring.groups import Group, difference
from harness.scoring.statistics import Estimate


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


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """gains: multi-task minus single-task headline by task, for the tasks where both have one; mean: of the means."""

    gains: Mapping[str, Estimate]
    mean: Estimate | None

    @property
    def losing(self) -> tuple[str, ...]:
        """The tasks that are worse off together (the seesaw), the worst first."""
        return tuple(sorted((t for t, g in self.gains.items() if g.value < 0), key=lambda t: self.gains[t].value))

    @property
    def losing_shown(self) -> tuple[str, ...]:
        """Those whose interval is below 0."""
        return tuple(t for t in self.losing if self.gains[t].high < 0)


def transfer(together: Group, alone: Group, tasks: Sequence[str]) -> Transfer:
    """The gains of a multi-task method over the method that trains each task alone."""
    found = {task: difference(together, alone, task) for task in tasks}
    return Transfer(
        gains={task: gain for task, gain in found.items() if gain is not None},
        mean=difference(together, alone, None),
    )


def transfer_in_words(together: str, alone: str, found: Transfer) -> str:
    """``cgc_lora against lora_single: mean +1.2 (0.3 to 2.0); 3 of 16 tasks lose (1 shown), the worst MedDG -2.0``."""
    mean = f"mean {points(found.mean)}; " if found.mean is not None else ""
    lose = f"{len(found.losing)} of {len(found.gains)} tasks lose ({len(found.losing_shown)} shown)"
    worst = f", the worst {found.losing[0]} {points(found.gains[found.losing[0]])}" if found.losing else ""
    return f"{together} against {alone}: {mean}{lose}{worst}"


def span(found: Estimate | None) -> str:
    """`` (80.1 to 86.0)``: a 95 % interval in percent; nothing where there is none."""
    return "" if found is None else f" ({percent(found.low)} to {percent(found.high)})"
