"""Which differences are significant, within a family of tests that are read together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from harness.scoring.comparable import other_effort
from harness.scoring.groups import SeedGroup, group_difference
from harness.scoring.statistics import LEVEL, Estimate, SeedVariance, holm


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference a minus b, and its test within a family.

    estimate: None if draws are missing or the test examples differ. p_adjusted: the p value after Holm's correction for
    the tests of the family; None if it was not tested. tests: their number. untested: the reason why it was not tested.
    """

    estimate: Estimate | None
    p_adjusted: float | None
    tests: int
    untested: str | None

    @property
    def significant(self) -> bool:
        """Whether the difference was tested, and its adjusted p value is below 5 %."""
        return self.p_adjusted is not None and self.p_adjusted < 1 - LEVEL

    @property
    def mdd(self) -> float | None:
        """The minimum detectable difference among the tests of the family."""
        return None if self.estimate is None else self.estimate.mdd(max(1, self.tests))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Two groups and what of them is compared: a task, or the mean over tasks for None.

    shared: the variance between seeds that both sides share with the other rows of a page; default each side's own.
    untested: a reason of the caller why the pair is not tested.
    """

    a: SeedGroup
    b: SeedGroup
    task: str | None = None
    shared: SeedVariance | None = None
    untested: str | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A difference before the correction for a family. estimate, untested: as in ``Difference``."""

    estimate: Estimate | None
    untested: str | None

    def mirrored(self) -> Measured:
        """The difference b minus a."""
        if self.estimate is None:
            return self
        e = self.estimate
        turned = replace(e, value=-e.value + 0.0, low=-e.high + 0.0, high=-e.low + 0.0, seeds=e.seeds[::-1])
        return Measured(estimate=turned, untested=self.untested)


def measure(pair: Pair) -> Measured:
    """The difference of a pair, and the reason why it cannot be tested, if there is one."""
    return Measured(
        estimate=group_difference(pair.a, pair.b, pair.task, pair.shared),
        untested=pair.untested or pair.a.untested or pair.b.untested or _other_effort(pair),
    )


def family(pairs: Sequence[Pair]) -> list[Difference]:
    """Test pairs that were named beforehand; Holm's correction (1979) is over those that can be tested."""
    return _tested(pairs, holm_of)


def family_of(found: Sequence[Measured]) -> list[Difference]:
    """``family`` for pairs that were measured before: a pair may be in several families, and is measured once."""
    return _adjusted(found, holm_of)


def best_against(pairs: Sequence[Pair]) -> list[Difference]:
    """Test the best of several groups, which is a of every pair, against each of the others.

    The best one is picked by the data, which is as if all pairs of groups were tested. Where the groups share their
    variance between seeds, the correction is that of Tukey and Kramer (Biometrics 12, 1956), p of the studentised range
    of as many groups; otherwise that of Bonferroni for all pairs.
    """
    return _tested(pairs, tukey if pairs and pairs[0].shared is not None else all_pairs)


def best_on_tasks(by_task: Mapping[str, Sequence[Pair]]) -> dict[str, list[Difference]]:
    """``best_against`` on each of several tasks, with p further multiplied by the number of tasks (Bonferroni)."""
    n = len(by_task)
    return {
        task: [
            replace(
                found,
                p_adjusted=None if found.p_adjusted is None else min(1.0, n * found.p_adjusted),
                tests=n * found.tests,
            )
            for found in best_against(pairs)
        ]
        for task, pairs in by_task.items()
    }


def holm_of(estimates: Sequence[Estimate]) -> list[float]:
    """Holm's adjusted p values."""
    return holm([found.p for found in estimates])


def tukey(estimates: Sequence[Estimate], groups: int | None = None) -> list[float]:
    """Adjusted p values of the best group against each of the others, by the studentised range of all groups.

    Args: groups: their number; default one more than the estimates.
    """
    return [_range_p(found, groups or len(estimates) + 1) for found in estimates]


def all_pairs(estimates: Sequence[Estimate], groups: int | None = None) -> list[float]:
    """p values multiplied by the number of all pairs of groups. Args: as ``tukey``."""
    n = groups or len(estimates) + 1
    return [min(1.0, found.p * n * (n - 1) / 2) for found in estimates]


def _other_effort(pair: Pair) -> str | None:
    """The difference in effort of two trained groups; what a search has chosen on dev may differ."""
    if not (pair.a.seeded and pair.b.seeded):
        return None
    return other_effort(pair.a.spec, pair.b.spec, free=(*pair.a.tuned_keys, *pair.b.tuned_keys))


def _range_p(found: Estimate, groups: int) -> float:
    if found.error <= 0 or groups == 2:
        return found.p
    return max(found.p, _studentised_range(round(abs(found.value) / found.error * math.sqrt(2), 4), groups, found.df))


@cache
def _studentised_range(statistic: float, groups: int, df: float) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.sf(statistic, groups, df))


def _tested(pairs: Sequence[Pair], adjust: Callable[[Sequence[Estimate]], list[float]]) -> list[Difference]:
    return _adjusted([measure(pair) for pair in pairs], adjust)


def _adjusted(found: Sequence[Measured], adjust: Callable[[Sequence[Estimate]], list[float]]) -> list[Difference]:
    known = {i: m.estimate for i, m in enumerate(found) if m.estimate is not None and m.untested is None}
    adjusted = dict(zip(known, adjust(list(known.values())), strict=True))
    return [
        Difference(estimate=m.estimate, p_adjusted=adjusted.get(i), tests=len(known), untested=m.untested)
        for i, m in enumerate(found)
    ]
