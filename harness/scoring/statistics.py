"""One bootstrap for all intervals: it resamples seeds and test examples, the same examples on both sides of a
comparison.

A protocol's metrics are functions of column sums over test examples (``harness.task.Statistics``), so a metric on B
resampled test sets is one matrix product: counts (B, n) @ statistics (n, k) -> sums (B, k) -> values (B,). The counts
of a task depend only on its name and n. Draws of two runs on the same examples are therefore always paired, and a run
stores its draws (``harness.scoring.draws``), so that comparisons need no predictions.

An estimate over S seeds (a crossed design: every seed is evaluated on the same examples) is, for draw b,

    mean_s v_s + example_b + scale_b * sum_s (w_{b,s} - 1/S) v_s

    v_s        the metric of seed s on the real test set
    example_b  the mean over seeds of their draws b, minus the mean of all draws (macro-averages are biased on
               resampled test sets because classes vanish, and an interval should contain its own value); with several
               seeds it is shrunk by the variance of single seeds on single examples, which is part of the next term
               already (see ``_example_part``)
    w_b        shares of S - 1 seeds drawn with replacement; S - 1, not S, because then the variance of the draws is
               the unbiased estimate s^2 / S (the rescaled bootstrap of Rao and Wu, JASA 83, 1988)
    scale_b    sqrt(df / chi2_df), which widens the interval because few seeds estimate their variance poorly
               (Student's t)

Intervals are the 2.5 % and 97.5 % quantiles of the draws. With one seed there is no last term, and the interval covers
only the choice of test examples (``Estimate.examples_only``). Examples are assumed to be independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.seeding import stable_seed
from harness.task import Floats, Statistics

DRAWS: Final = 2000
LEVEL: Final = 0.95
_Z80: Final = 0.8416  # The standard normal quantile for 80 % power.
_ZERO: Final = 1e-12  # Differences closer to 0 than this are rounding errors.
_BIASED: Final = 4.0  # Draws are biased where their mean is further than this many standard errors from the value.
_ROUNDING: Final = 1e-9
_LARGEST: Final = 4_000_000  # Column sums are computed in blocks of at most this many numbers, to bound memory.


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampled:
    """One metric of one run: on the real test set (value) and on B resampled test sets (draws, (B,))."""

    value: float
    draws: Floats


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric, or a difference of metrics, over a group of runs.

    low, high: the 95 % interval. error: the standard error. sd: standard deviation over seeds, None with one seed.
    p: the two-sided p value of the hypothesis that the true value is 0, meaningful for differences.
    seeds: the number of runs on each side. examples_only: no seeds were resampled, so the interval covers the choice of
    test examples alone.
    """

    value: float
    low: float
    high: float
    error: float
    sd: float | None
    p: float
    seeds: tuple[int, ...]
    examples_only: bool

    @property
    def significant(self) -> bool:
        """Whether the 95 % interval excludes 0."""
        return self.low > 0 or self.high < 0

    @property
    def mdd(self) -> float:
        """The minimum detectable difference: the smallest true difference that is significant with 80 % power.

        A difference is significant when it is further from 0 than half the width of the interval. The estimate of a
        true difference d is above d - 0.84 standard errors in 80 % of all repetitions.
        """
        return (self.high - self.low) / 2 + _Z80 * self.error


def example_counts(task: str, n: int, draws: int = DRAWS) -> Floats:
    """The count of each of n test examples in each resampled test set: (draws, n), every row sums to n."""
    rng = np.random.default_rng(stable_seed("rows", task, n, draws))
    picked = rng.integers(0, n, size=(draws, n))
    flat = (picked + np.arange(draws)[:, None] * n).ravel()
    return np.bincount(flat, minlength=draws * n).reshape(draws, n).astype(np.float64)


def metrics(statistics: Statistics) -> dict[str, float]:
    """Every metric on the real test set."""
    return {name: float(value) for name, value in statistics.values(statistics.per_example.sum(axis=0)).items()}


def resample(statistics: Statistics, metric: str, counts: Floats) -> Resampled:
    """One metric on the real test set and on resampled ones.

    Args: counts from ``example_counts``, (B, n).
    Raises: HarnessError if the metric is not a number between 0 and 1 on some test set.
    """
    block = max(1, _LARGEST // max(1, statistics.per_example.shape[1]))
    blocks = [statistics.values(counts[i : i + block] @ statistics.per_example) for i in range(0, len(counts), block)]
    draws = np.concatenate([b[metric] for b in blocks])
    value = float(statistics.values(statistics.per_example.sum(axis=0))[metric])
    outside = [x for x in (value, draws.min(), draws.max()) if not -_ROUNDING <= x <= 1 + _ROUNDING]
    if outside:
        raise HarnessError(f"metric {metric!r} is {outside[0]} on some test set; metrics must be between 0 and 1")
    return Resampled(value=value, draws=draws)


def mean_over_tasks(tasks: Sequence[Resampled]) -> Resampled:
    """The unweighted mean of one run's tasks. Draws of different tasks are independent."""
    return Resampled(value=float(np.mean([t.value for t in tasks])), draws=np.mean([t.draws for t in tasks], axis=0))


def interval(run: Resampled) -> tuple[float, float]:
    """The 95 % interval of one run's metric over the choice of test examples, within 0 and 1."""
    found = estimate([run])
    return found.low, found.high


def estimate(runs: Sequence[Resampled]) -> Estimate:
    """A metric over the seeds of one method (at least one run)."""
    return _estimate([runs], bounds=(0.0, 1.0))


def difference(a: Sequence[Resampled], b: Sequence[Resampled]) -> Estimate:
    """a's metric minus b's on the same test examples. Each side has at least one run; seeds are resampled by side.

    ``difference(b, a)`` mirrors it exactly, so that a verdict does not depend on the order of the two sides.
    """
    if [run.value for run in b] < [run.value for run in a]:
        found = _estimate([b, a], bounds=(-1.0, 1.0))
        return replace(
            found, value=0.0 - found.value, low=0.0 - found.high, high=0.0 - found.low, seeds=found.seeds[::-1]
        )
    return _estimate([a, b], bounds=(-1.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """only_a, only_b: test examples that only one side predicted correctly. p: two-sided, for equal error rates."""

    only_a: int
    only_b: int
    p: float


def mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test (1947): whether two runs are correct equally often on the same examples.

    Args: a, b: (n,), which examples each side predicted correctly.
    """
    from scipy.stats import binomtest

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_a + only_b
    p = float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
    return McNemar(only_a=only_a, only_b=only_b, p=p)


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for the number of tests (Holm 1979): each may be compared with 0.05 by itself."""
    adjusted = [0.0] * len(p)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def _estimate(sides: Sequence[Sequence[Resampled]], bounds: tuple[float, float]) -> Estimate:
    values = [np.array([run.value for run in runs]) for runs in sides]
    value = sum(sign * float(v.mean()) for sign, v in zip((1, -1), values, strict=False))
    examples = _example_part(sides)
    draws = value + examples + _seed_part(values, len(examples))
    variances = [float(v.var(ddof=1)) if len(v) > 1 else 0.0 for v in values]
    error = math.sqrt(float(examples.var()) + sum(s2 / len(v) for s2, v in zip(variances, values, strict=True)))
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).clip(*bounds)
    tail = min(int((draws <= _ZERO).sum()), int((draws >= -_ZERO).sum()))
    return Estimate(
        value=value,
        low=float(low),
        high=float(high),
        error=error,
        sd=math.sqrt(variances[0]) if len(sides) == 1 and len(values[0]) > 1 else None,
        p=min(1.0, (2 * tail + 1) / (len(draws) + 1)),
        seeds=tuple(len(v) for v in values),
        examples_only=all(len(v) == 1 for v in values),
    )


def _example_part(sides: Sequence[Sequence[Resampled]]) -> Floats:
    """The deviations that other test examples would cause: (B,), around 0.

    The effect of an example on a single seed is part of the variance between seeds already. Where a side has several
    seeds, its variance here is therefore the mean covariance between two of them, not the variance of their mean.
    """
    means, variance = [], 0.0
    for runs in sides:
        draws = np.stack([run.draws for run in runs])
        draws -= np.array([_centre(run) for run in runs])[:, None]
        mean = draws.mean(axis=0)
        means.append(mean)
        n = len(runs)
        alone = float(draws.var(axis=1).mean())
        variance += float(mean.var()) if n == 1 else (n * float(mean.var()) - alone) / (n - 1)
    if len(means) == 1:
        part: Floats = means[0]
    else:
        part = means[0] - means[1]
        variance -= 2 * float(np.cov(means[0], means[1], ddof=0)[0, 1])
    naive = float(part.var())
    if naive > 0:
        part *= math.sqrt(max(0.0, variance) / naive)
    return part


def _centre(run: Resampled) -> float:
    """The centre of a run's draws: its value, or the mean of the draws where they are biased.

    A macro-F1 with invented labels is biased under resampling. All other draws keep their own grid: where one example
    causes the whole difference, the draws without that example must be exactly 0.
    """
    mean = float(run.draws.mean())
    noise = float(run.draws.std()) / math.sqrt(len(run.draws))
    return mean if abs(mean - run.value) > _BIASED * noise else run.value


def _seed_part(values: Sequence[Floats], draws: int) -> Floats:
    """The deviations that other seeds would cause: (B,). Two sides have Welch's (1947) degrees of freedom."""
    part = np.zeros(draws)
    variances, above = 0.0, 0.0
    for side, v in enumerate(values):
        n = len(v)
        if n == 1:
            continue
        rng = np.random.default_rng(stable_seed("seeds", side, n, draws))
        shares = rng.multinomial(n - 1, np.full(n, 1 / n), size=draws) / (n - 1)
        part += (-1) ** side * ((shares - 1 / n) @ v)
        variance = float(v.var(ddof=1)) / n
        variances += variance
        above += variance**2 / (n - 1)
    if above == 0.0:
        return part
    df = variances**2 / above
    chi2 = np.random.default_rng(stable_seed("scale", draws)).chisquare(df, size=draws)
    scaled: Floats = part * np.sqrt(df / chi2)
    return scaled
