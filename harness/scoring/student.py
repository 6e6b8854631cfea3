"""Student's t distribution; with infinite degrees of freedom it is the normal one.

These are the functions behind ``scipy.stats``, which takes a second to be imported.
"""

from __future__ import annotations

import math


def two_sided_p(statistic: float, df: float) -> float:
    """The probability of a value at least as far from 0."""
    from scipy.special import ndtr, stdtr

    return float(2 * (ndtr(-abs(statistic)) if math.isinf(df) else stdtr(df, -abs(statistic))))


def quantile(probability: float, df: float) -> float:
    """The value below which the distribution has this probability."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri(probability) if math.isinf(df) else stdtrit(df, probability))
