"""Intervals and tests: a bootstrap over test examples, equal on both sides of a comparison, and Student's t over seeds.

A protocol's metrics are functions of column sums over test examples (``harness.task.Statistics``), so a metric on B
resampled test sets is one matrix product: counts (B, n) @ statistics (n, k) -> sums (B, k) -> values (B,). The counts
of a task depend only on its name and n. Draws of two runs on the same examples are therefore always paired, and a run
stores its draws (``harness.scoring.draws``), so that comparisons need no predictions. Where several examples come from
one text, they are not independent, and the rows of statistics are units of several examples: what is said of examples
here and in the modules next to this one is then true of units.

An estimate over seeds is a crossed design: every seed of a side is evaluated on the same examples. With n_a and n_b
seeds the standard error of a difference of means is (Welch 1947; one side alone for a level)

    error^2 = s_a^2 / n_a + s_b^2 / n_b + v

    s_a^2, s_b^2  variances between seeds, which contain the effect of single examples on single seeds; each side's
                  own, or one that the rows of a leaderboard share (``shared_variance``)
    v             the variance that other test examples would cause in the difference and that all seeds have in
                  common, by the method of moments (``_example_variance``) from the contributions of single examples
                  (``harness.scoring.randomisation``), or from the draws where a run was scored without them

and it is at least the variance that other test examples would cause with these very seeds. p is Welch's, or that of
random swaps of the two sides where it is larger.

The interval is value ± t(df) * error. A difference has Satterthwaite's degrees of freedom (Biometrics 2, 1946). Of a
level, 1 / df is the mean over its parts, weighted by their variances: with two seeds that vary more than the test set
Satterthwaite's cover 89 %, these 93 %. v has one for each test example minus one for each task; it is known if there
are draws only. The interval is symmetric in the sides and in the order of the seeds. A side without randomness in
training, such as a baseline, has no variance between seeds. A single run alone has the percentile interval of its
draws, which covers the choice of test examples only. Examples, or units, are assumed to be independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.scoring.randomisation import contributions, swap_p
from harness.scoring.student import quantile, two_sided_p
from harness.seeding import stable_seed
from harness.task import Floats, Statistics

DRAWS: Final = 2000
LEVEL: Final = 0.95
_ENDS: Final = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_Z80: Final = 0.8416  # The standard normal quantile for 80 % power.
_ZERO: Final = 1e-12  # Differences closer to 0 than this are rounding errors.
_BIASED: Final = 4.0  # Draws are biased where their mean is further than this many standard errors from the value.
_ROUNDING: Final = 1e-9
_LARGEST: Final = 4_000_000  # Column sums are computed in blocks of at most this many numbers, to bound memory.


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampled:
    """One metric of one run, or its mean over tasks.

    value: on the real test set. draws: on B resampled test sets, (B,).
    deviations: (n,), what each unit contributes, scaled so that the sum of squares is the variance over test sets;
        None for a run that was scored without them. n_tasks: the number of tasks of the mean.
    """

    value: float
    draws: Floats
    deviations: Floats | None = None
    n_tasks: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """The runs of one method on the same examples. seeded: whether other seeds would give other predictions."""

    runs: Sequence[Resampled]
    seeded: bool = True


@dataclass(frozen=True, kw_only=True)
class SeedVariance:
    """A variance between seeds that several rows share.

    df: its degrees of freedom. n_rows: the number of rows with at least two seeds that it is from. p_equal: p of
    Cochran's test (1941) that the largest of their variances is no larger than the others.
    """

    value: float
    df: float
    n_rows: int
    p_equal: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric, or a difference of metrics, over a group of runs.

    low, high: the 95 % interval. error: the standard error. df: its degrees of freedom, infinite if only draws of one
        seed are known.
    sd: standard deviation over seeds, None with one seed.
    p: the two-sided p value of the hypothesis that the true value is 0, meaningful for differences. It is not corrected
        for the number of tests (see ``harness.scoring.significance``).
    seeds: the number of runs on each side. examples_only: the variance between seeds is not in the interval, because no
        side has several of them.
    """

    value: float
    low: float
    high: float
    error: float
    df: float
    sd: float | None
    p: float
    seeds: tuple[int, ...]
    examples_only: bool

    def mdd(self, tests: int = 1) -> float:
        """The minimum detectable difference: the smallest true difference that is significant with 80 % power.

        A difference is significant when it is further from 0 than t(df) standard errors; with several tests at the
        level 5 % / tests, as for the smallest p value of Holm's correction. The estimate of a true difference d is
        above d - 0.84 standard errors in 80 % of all repetitions.
        """
        return (quantile(1 - (1 - LEVEL) / (2 * tests), self.df) + _Z80) * self.error


def unit_counts(task: str, n: int, draws: int = DRAWS) -> Floats:
    """The count of each of n units in each resampled test set: (draws, n), every row sums to n."""
    rng = np.random.default_rng(stable_seed("rows", task, n, draws))
    picked = rng.integers(0, n, size=(draws, n))
    flat = (picked + np.arange(draws)[:, None] * n).ravel()
    return np.bincount(flat, minlength=draws * n).reshape(draws, n).astype(np.float64)


def metrics(statistics: Statistics) -> dict[str, float]:
    """Every metric on the real test set."""
    return {name: float(value) for name, value in statistics.values(statistics.per_unit.sum(axis=0)).items()}


def resample(statistics: Statistics, metric: str, counts: Floats) -> Resampled:
    """One metric on the real test set and on resampled ones.

    Args: counts from ``unit_counts``, (B, n).
    Raises: HarnessError if the metric is not a number between 0 and 1 on some test set.
    """
    block = max(1, _LARGEST // max(1, statistics.per_unit.shape[1]))
    blocks = [statistics.values(counts[i : i + block] @ statistics.per_unit) for i in range(0, len(counts), block)]
    draws = np.concatenate([b[metric] for b in blocks])
    value = float(statistics.values(statistics.per_unit.sum(axis=0))[metric])
    outside = [x for x in (value, draws.min(), draws.max()) if not -_ROUNDING <= x <= 1 + _ROUNDING]
    if outside:
        raise HarnessError(f"metric {metric!r} is {outside[0]} on some test set; metrics must be between 0 and 1")
    n = len(statistics.per_unit)
    deviations = contributions(statistics, metric) * math.sqrt(n / (n - 1)) if n > 1 else None
    if deviations is not None and not np.isfinite(deviations).all():
        raise HarnessError(f"metric {metric!r} is not a number on a test set without one of its units")
    return Resampled(value=value, draws=draws, deviations=deviations)


def mean_over_tasks(tasks: Sequence[Resampled]) -> Resampled:
    """The unweighted mean of one run's tasks. Draws of different tasks are independent."""
    if len(tasks) == 1:
        return tasks[0]
    known = [t.deviations / len(tasks) for t in tasks if t.deviations is not None]
    return Resampled(
        value=float(np.mean([t.value for t in tasks])),
        draws=np.mean([t.draws for t in tasks], axis=0),
        deviations=np.concatenate(known) if len(known) == len(tasks) else None,
        n_tasks=len(tasks),
    )


def interval(run: Resampled) -> tuple[float, float]:
    """The 95 % interval of one run's metric over the choice of test examples, within 0 and 1."""
    low, high = np.quantile(run.draws - _centre(run) + run.value, _ENDS).clip(0.0, 1.0)
    return float(low), float(high)


def estimate(side: Side, shared: SeedVariance | None = None) -> Estimate:
    """A metric over the seeds of one method (at least one run). The interval is within 0 and 1."""
    found = _estimate([side], shared)
    if found.examples_only:
        low, high = interval(side.runs[0])
        return replace(found, low=low, high=high)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def difference(a: Side, b: Side, shared: SeedVariance | None = None) -> Estimate:
    """a's metric minus b's on the same test examples. ``difference(b, a)`` is the same with the other sign.

    Args: shared: the variance between seeds of both sides; default each side's own. A side with a single seed takes
        that of the other side.
    """
    found = _estimate([a, b], shared)
    if found.p >= 1 - LEVEL:
        return found
    return replace(found, p=max(found.p, _swap_p(a, b, found.value) or 0.0))


def shared_variance(rows: Sequence[Sequence[float]]) -> SeedVariance | None:
    """The variance between seeds that rows share, from the values of each row's seeds.

    Returns: the mean of the rows' variances, weighted by their degrees of freedom; None if fewer than two rows have
        several seeds, or if Cochran's test rejects at 5 % that the largest is like the others, so that each row
        must use its own.
    """
    values = [np.asarray(row, dtype=np.float64) for row in rows if len(row) > 1]
    if len(values) < 2:
        return None
    dfs = np.array([len(v) - 1 for v in values], dtype=np.float64)
    variances = np.array([v.var(ddof=1) for v in values])
    pooled, df = float(dfs @ variances / dfs.sum()), float(dfs.sum())
    p = _cochran(variances, tuple(dfs))
    return SeedVariance(value=pooled, df=df, n_rows=len(values), p_equal=p) if p >= 1 - LEVEL else None


def _cochran(variances: Floats, dfs: tuple[float, ...]) -> float:
    """p of Cochran's test that no variance is larger than the others, by simulation of normal values with a fixed seed.

    Unlike Bartlett's test it is not misled by rows whose seeds happen to have equal scores, which are frequent with few
    test examples. Such a row is judged by a variance that is too large for it, so that errors are not more frequent.
    """
    if variances.max() <= _ZERO**2:
        return 1.0  # no row varies at all
    null = _cochran_null(dfs)
    return float((1 + (null >= _cochran_statistic(variances[None], dfs)[0]).sum()) / (1 + len(null)))


def _cochran_statistic(variances: Floats, dfs: tuple[float, ...]) -> Floats:
    """The largest variance in units of the pooled one, for each line of variances (n, rows)."""
    weights = np.array(dfs)
    statistic: Floats = variances.max(axis=1) * weights.sum() / (variances @ weights)
    return statistic


@cache
def _cochran_null(dfs: tuple[float, ...]) -> Floats:
    rng = np.random.default_rng(stable_seed("cochran", *dfs))
    return _cochran_statistic(rng.chisquare(np.array(dfs), size=(DRAWS, len(dfs))) / np.array(dfs), dfs)


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


def _estimate(sides: Sequence[Side], shared: SeedVariance | None) -> Estimate:
    values = [np.array([run.value for run in side.runs]) for side in sides]
    value = sum(sign * float(v.mean()) for sign, v in zip((1, -1), values, strict=False))
    between = _between_seeds(sides, values, shared)
    of_seeds = sum(part.value for part in between)
    examples = _example_variance(sides)
    variance = max(examples.common + of_seeds, examples.of_mean)
    parts = [*between, _Part(value=variance - of_seeds, df=_df_of_examples(sides))]
    df = _df_of_sum(parts, one_side=len(sides) == 1)
    error = math.sqrt(variance)
    half = quantile((1 + LEVEL) / 2, df) * error
    return Estimate(
        value=value,
        low=value - half,
        high=value + half,
        error=error,
        df=df,
        sd=float(values[0].std(ddof=1)) if len(sides) == 1 and len(values[0]) > 1 else None,
        p=_p_value(value, error, df, len(sides[0].runs[0].draws)),
        seeds=tuple(len(v) for v in values),
        examples_only=not between,
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of the squared standard error. df: its degrees of freedom."""

    value: float
    df: float


def _df_of_sum(parts: Sequence[_Part], *, one_side: bool) -> float:
    """The degrees of freedom of an error, of one side or of a difference; infinite for an error of 0."""
    total = sum(part.value for part in parts)
    below = sum(part.value * (total if one_side else part.value) / part.df for part in parts)
    return total**2 / below if below > 0 else math.inf


def _between_seeds(sides: Sequence[Side], values: Sequence[Floats], shared: SeedVariance | None) -> list[_Part]:
    """The parts that are due to seeds; none if no variance between seeds is known."""
    seeded = [v for side, v in zip(sides, values, strict=True) if side.seeded]
    share = sum(1 / len(v) for v in seeded)
    if shared is not None and seeded:
        return [_Part(value=shared.value * share, df=shared.df)]
    several = [v for v in seeded if len(v) > 1]
    if len(several) < len(seeded):  # A side with one seed takes the variance of the other.
        return [_Part(value=float(v.var(ddof=1)) * share, df=len(v) - 1) for v in several]
    return [_Part(value=float(v.var(ddof=1)) / len(v), df=len(v) - 1) for v in several]


@dataclass(frozen=True, kw_only=True)
class _ExampleVariance:
    """Variances over test sets. of_mean: of the estimate with these seeds. common: the part that all seeds have.

    The effect of an example on a single seed is part of the variance between seeds already. Where a side has several
    seeds, ``common`` is therefore the mean covariance between two of them. It is estimated with noise, so that the sum
    with the variance between seeds can be too small; ``of_mean`` is a lower bound of the whole with little noise.
    """

    common: float
    of_mean: float


def _example_variance(sides: Sequence[Side]) -> _ExampleVariance:
    means, variance = [], 0.0
    for runs in _deviations(sides):
        mean = runs.mean(axis=0)
        means.append(mean)
        n, of_mean = len(runs), float(mean @ mean)
        variance += of_mean if n == 1 else (n * of_mean - float((runs**2).sum(axis=1).mean())) / (n - 1)
    if len(means) == 2:
        variance -= 2 * float(means[0] @ means[1])
    whole = means[0] if len(means) == 1 else means[0] - means[1]
    return _ExampleVariance(common=max(0.0, variance), of_mean=float(whole @ whole))


def _df_of_examples(sides: Sequence[Side]) -> float:
    """The number of test examples minus that of tasks, each of which has a mean; infinite if only draws are known."""
    first = sides[0].runs[0]
    unknown = any(run.deviations is None for side in sides for run in side.runs)
    return math.inf if unknown or first.deviations is None else max(1, len(first.deviations) - first.n_tasks)


def _deviations(sides: Sequence[Side]) -> list[Floats]:
    """For each side (runs, n) numbers whose products, summed over n, are the covariances of runs over test sets."""
    runs = [[run.deviations for run in side.runs] for side in sides]
    if all(one is not None for of_side in runs for one in of_side):
        return [np.stack([one for one in of_side if one is not None]) for of_side in runs]
    draws = [np.stack([run.draws for run in side.runs]) for side in sides]
    return [(d - d.mean(axis=1, keepdims=True)) / math.sqrt(d.shape[1]) for d in draws]


def _swap_p(a: Side, b: Side, value: float) -> float | None:
    """p of random swaps of the sides; None without deviations, and for a mean over tasks, which has many examples."""
    if any(run.deviations is None or run.n_tasks > 1 for side in (a, b) for run in side.runs):
        return None
    left, right = (runs.mean(axis=0) for runs in _deviations([a, b]))
    n = len(left)
    return swap_p((left - right) * math.sqrt((n - 1) / n) + value / n)


def _p_value(value: float, error: float, df: float, draws: int) -> float:
    """Two-sided p of a true value of 0. Without any variance it is bounded by the number of draws."""
    if abs(value) <= _ZERO:
        return 1.0
    if error <= _ZERO:
        return 2 / (draws + 1)
    return two_sided_p(value / error, df)


def _centre(run: Resampled) -> float:
    """The centre of a run's draws: its value, or the mean of the draws where they are biased.

    A macro-F1 with invented labels is biased under resampling. All other draws keep their own grid: where one example
    causes the whole difference, the draws without that example must be exactly 0.
    """
    mean = float(run.draws.mean())
    noise = float(run.draws.std()) / math.sqrt(len(run.draws))
    return mean if abs(mean - run.value) > _BIASED * noise else run.value
