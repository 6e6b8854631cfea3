"""A difference in words: whether it is significant, how large it is, and the minimum detectable difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from harness.reporting.numbers import MISSING, counted, p_value, percent, percent_range, points, points_range
from harness.scoring.significance import Difference
from harness.scoring.statistics import Estimate

DRAWS_ONLY: Final = (
    "some runs were scored by a version that stored bootstrap draws only: their intervals are too short for a macro-F1 "
    "with many classes, and differences are called significant too often (harness score RUN repairs it)"
)


def verdict(a: str, b: str, found: Difference) -> str:
    """A sentence about the difference a minus b, in percentage points.

    ``cgc_lora above moe_lora: not significant, +0.4 (-0.9 to 1.7), p 0.31, 5 seeds; minimum detectable difference 1.5``
    """
    if found.estimate is None:
        return f"{a} and {b}: not tested, because scores are missing or the test examples differ"
    side = "below" if found.estimate.value < 0 else "above"
    figures = f"{gain(found.estimate)}, {seeds_in_words(found.estimate)}"
    if found.untested is not None:
        return f"{a} {side} {b}: not tested ({found.untested}), {figures}"
    significant = "significant" if found.significant else "not significant"
    corrected = f" after correction for {found.tests} tests" if found.tests > 1 else ""
    return (
        f"{a} {side} {b}: {significant}, {figures}, p {p_value(found.p_adjusted)}{corrected}; "
        f"minimum detectable difference {percent(found.mdd)}"
    )


def gain(found: Estimate | None) -> str:
    """``+0.4 (-0.9 to 1.7)``: a difference and its 95 % interval in percentage points; None as –."""
    if found is None:
        return MISSING
    return f"{points(found.value)} ({points_range(found.low, found.high)})"


def seeds_in_words(found: Estimate) -> str:
    """``5 seeds``, ``5 and 3 seeds``, ``1 seed (the interval covers test examples only)``."""
    if all(n == 1 for n in found.seeds):
        return "1 seed" + (" (the interval covers test examples only)" if found.examples_only else "")
    if len(set(found.seeds)) == 1:
        return f"{found.seeds[0]} seeds"
    return " and ".join(map(str, found.seeds)) + " seeds"


def score_interval(found: Estimate | None) -> str:
    """``80.1 to 86.0``: the 95 % interval of a score in percent; None as –."""
    return percent_range(None if found is None else (found.low, found.high))


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """The gains of training tasks together over training each task alone.

    gains: the difference of the headlines by task, for tasks where both sides have one. mean: that of the means.
    """

    gains: Mapping[str, Difference]
    mean: Difference

    @property
    def losing(self) -> tuple[str, ...]:
        """The tasks with a negative gain (the seesaw effect), the largest loss first."""
        values = {task: found.estimate.value for task, found in self.gains.items() if found.estimate is not None}
        return tuple(sorted((task for task, value in values.items() if value < 0), key=lambda task: values[task]))

    @property
    def losing_significantly(self) -> tuple[str, ...]:
        """The tasks with a significant loss."""
        return tuple(task for task in self.losing if self.gains[task].significant)


def transfer_in_words(together: str, alone: str, found: Transfer) -> str:
    """A sentence about the gains of a method over training each task alone.

    ``cgc_lora against lora_single: mean +1.2 (0.3 to 2.0); 3 of 16 tasks lose (1 significantly), most MedDG -2.0 (…)``
    """
    mean = f"mean {gain(found.mean.estimate)}; " if found.mean.estimate is not None else ""
    of = counted(len(found.gains), "task")
    lose = f"{len(found.losing)} of {of} lose ({len(found.losing_significantly)} significantly)"
    worst = found.gains[found.losing[0]].estimate if found.losing else None
    most = f", most {found.losing[0]} {gain(worst)}" if worst is not None else ""
    return f"{together} against {alone}: {mean}{lose}{most}"
