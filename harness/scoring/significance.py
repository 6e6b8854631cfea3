"""Which differences are significant, within a family of tests that are read together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def family(pairs: Sequence[Pair]) -> list[Difference]:
    """Test pairs that are read together; Holm's correction (1979) is over those that can be tested."""
    estimates = [group_difference(pair.a, pair.b, pair.task, pair.shared) for pair in pairs]
    reasons = [pair.untested or pair.a.untested or pair.b.untested for pair in pairs]
    tested = [i for i, found in enumerate(estimates) if found is not None and reasons[i] is None]
    adjusted = dict(zip(tested, holm([estimates[i].p for i in tested]), strict=True))  # type: ignore[union-attr]
    return [
        Difference(estimate=found, p_adjusted=adjusted.get(i), tests=len(tested), untested=reasons[i])
        for i, found in enumerate(estimates)
    ]
