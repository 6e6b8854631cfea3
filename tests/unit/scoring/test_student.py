"""Student's t distribution, by scipy's statistics."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from harness.scoring.student import quantile, two_sided_p

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("df", [0.7, 1.0, 3.3, 12.0, 1e6, math.inf])
def test_p_values_and_quantiles_are_those_of_scipy(df: float) -> None:
    distribution = stats.norm if math.isinf(df) else stats.t(df)
    for x in (0.0, 1e-9, 0.3, 2.0, 5.0):
        assert two_sided_p(x, df) == two_sided_p(-x, df) == pytest.approx(2 * distribution.sf(x), rel=1e-12)
    for p in (0.025, 0.4, 0.975, 0.999):
        assert quantile(p, df) == pytest.approx(distribution.ppf(p), rel=1e-9)
