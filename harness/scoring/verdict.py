"""A difference in words: whether it is significant, how large it is, and the minimum detectable difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.reporting.numbers import percent, percent_range, points, points_range
from harness.scoring.groups import SeedGroup, group_difference
from harness.scoring.statistics import Estimate


def verdict(a: str, b: str, found: Estimate) -> str:
    """A sentence about the difference a minus b, in percentage points.

    ``cgc_lora above moe_lora: not significant, +0.4 (-0.9 to 1.7), 5 seeds; minimum detectable difference 1.5 (80 %
    power)``
    """
    side = "below" if found.value < 0 else "above"
    significant = "significant" if found.significant else "not significant"
    return (
        f"{a} {side} {b}: {significant}, {gain(found)}, {seeds_in_words(found.seeds)}; "
        f"minimum detectable difference {percent(found.mdd)} (80 % power)"
    )


def gain(found: Estimate) -> str:
    """``+0.4 (-0.9 to 1.7)``: a difference and its 95 % interval in percentage points."""
    return f"{points(found.value)} ({points_range(found.low, found.high)})"


def seeds_in_words(seeds: Sequence[int]) -> str:
    """``5 seeds``, ``5 and 3 seeds``, ``1 seed (the interval covers test examples only)``."""
    if all(n == 1 for n in seeds):
        return "1 seed (the interval covers test examples only)"
    if len(set(seeds)) == 1:
        return f"{seeds[0]} seeds"
    return " and ".join(map(str, seeds)) + " seeds"


def score_interval(found: Estimate | None) -> str:
    """``80.1 to 86.0``: the 95 % interval of a score in percent; None as –."""
    return percent_range(None if found is None else (found.low, found.high))


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """The gains of training tasks together over training each task alone.

    gains: the difference of the headlines by task, for tasks where both sides have one. mean: that of the means.
    """

    gains: Mapping[str, Estimate]
    mean: Estimate | None

    @property
    def losing(self) -> tuple[str, ...]:
        """The tasks with a negative gain (the seesaw effect), the largest loss first."""
        return tuple(sorted((t for t, g in self.gains.items() if g.value < 0), key=lambda t: self.gains[t].value))

    @property
    def losing_significantly(self) -> tuple[str, ...]:
        """The tasks whose interval is below 0."""
        return tuple(t for t in self.losing if self.gains[t].high < 0)


def transfer(together: SeedGroup, alone: SeedGroup, tasks: Sequence[str]) -> Transfer:
    """The gains of a multi-task method over the method that trains each task alone."""
    gains = {task: group_difference(together, alone, task) for task in tasks}
    return Transfer(
        gains={task: found for task, found in gains.items() if found is not None},
        mean=group_difference(together, alone, None),
    )


def transfer_in_words(together: str, alone: str, found: Transfer) -> str:
    """A sentence about the gains of a method over training each task alone.

    ``cgc_lora against lora_single: mean +1.2 (0.3 to 2.0); 3 of 16 tasks lose (1 significantly), most MedDG -2.0 (…)``
    """
    mean = f"mean {gain(found.mean)}; " if found.mean is not None else ""
    lose = f"{len(found.losing)} of {len(found.gains)} tasks lose ({len(found.losing_significantly)} significantly)"
    most = f", most {found.losing[0]} {gain(found.gains[found.losing[0]])}" if found.losing else ""
    return f"{together} against {alone}: {mean}{lose}{most}"
