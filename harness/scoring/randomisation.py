"""A test by random swaps of the two sides of a comparison, and what single test examples contribute to a metric.

Where two methods are equally good, the answers of one and of the other to an example are exchangeable: a swap of them
gives a difference that was as likely (Fisher 1935; for metrics of language processing Noreen 1989, Yeh 2000). All seeds
of a side are swapped together, because the answers of one method to one example resemble each other between its seeds;
swaps of single seeds would hide this. The test says nothing about other seeds. It is therefore an addition to Welch's
test, and both must reject (``harness.scoring.statistics``).

A swap needs what each example contributes to each side. It is computed when a run is scored, so that comparisons need
no predictions: for a metric m on n examples, and m_i without example i,

    c_i = ((n - 1) / n) * (mean of m_i  -  m_i)

which is (x_i - mean of x) / n for a mean. Differences of contributions are exact for means and linear in the others.
"""

from __future__ import annotations

import numpy as np

from harness.seeding import stable_seed
from harness.task import Floats, Statistics

SWAPS = 2000
_TIE = 1e-5  # Contributions are stored in four bytes.
_BLOCK = 2_000_000  # Swaps are drawn in blocks of at most this many numbers, to bound memory.


def contributions(statistics: Statistics, metric: str) -> Floats:
    """What each test example adds to a metric, in units of the metric: (n,), their sum is 0.

    The sum of their squares times n / (n - 1) is the jackknife's variance (Efron and Stein, Annals of Statistics 9,
    1981): equal to the usual one for a mean and, on average, no smaller than the true one for any metric. The
    bootstrap's is smaller for a macro-F1 with rare classes, because most resampled test sets lack some of them.
    """
    rows = statistics.per_unit
    n, sums = len(rows), rows.sum(axis=0)
    size = max(1, _BLOCK // max(1, rows.shape[1]))
    blocks = [statistics.values(sums - rows[i : i + size])[metric] for i in range(0, n, size)]
    without = np.concatenate(blocks)
    scaled: Floats = (without.mean() - without) * (n - 1) / n
    return scaled


def swap_p(differences: Floats, swaps: int = SWAPS) -> float | None:
    """Two-sided p of the sum of differences when the two sides of each example are swapped at random.

    Args: differences: what each example adds to the difference of the two sides, (n,), in units of the metric.
    Returns: (1 + k) / (1 + swaps), k the number of random swaps with a sum at least as far from 0 (Davison and Hinkley
        1997, 4.11); None if k is 0, where the test only says that p is small. The swaps depend on n only.
    """
    given = differences[np.abs(differences) > _TIE * np.abs(differences).max(initial=0.0)]
    observed = abs(float(differences.sum()))
    rng = np.random.default_rng(stable_seed("swaps", len(given), swaps))
    size = max(1, _BLOCK // max(1, len(given)))
    as_far = 0
    for start in range(0, swaps, size):
        swapped = rng.integers(0, 2, size=(min(size, swaps - start), len(given)), dtype=np.int8)
        sums = given.sum() - 2 * (swapped.astype(np.float64) @ given)
        as_far += int((np.abs(sums) >= observed * (1 - _TIE)).sum())
    return (1 + as_far) / (1 + swaps) if as_far else None
