"""Planted clusters are found and called a finding; clusters of noise are not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.errors import DataError
from harness.leaderboard.affinity import verdict
from harness.scoring.affinity_clusters import (
    clusterings,
    complete,
    deviation_of,
    mean_of,
    rank_correlation,
    to_array,
    to_matrix,
)
from harness.scoring.partitions import Rules
from harness.store.affinity import Clustering

TASKS = tuple("abcdefg")
HOME = (0, 0, 0, 1, 1, 2, 2)
ANY = Rules(smallest=1, largest=7)


def runs(signal: float, n: int = 5, seed: int = 0) -> list[NDArray[np.float64]]:
    """The matrices of n runs: a signal within the planted groups, and noise of their own."""
    rng = np.random.default_rng(seed)
    same = np.array(HOME)[:, None] == HOME
    return [signal * same + rng.normal(size=(7, 7)) for _ in range(n)]


def at(k: int, found: tuple[Clustering, ...]) -> Clustering:
    return next(one for one in found if one.k == k)


def test_planted_clusters_are_found_by_every_run_and_are_a_finding_on_other_runs() -> None:
    found = at(3, clusterings(runs(signal=6.0), TASKS, [str(h) for h in HOME], ANY))
    assert {frozenset(g) for g in found.groups} == {frozenset("abc"), frozenset("de"), frozenset("fg")}
    assert found.stability == found.kind == 1
    assert found.null.percentile > 99
    assert found.null.held_out is not None
    assert found.null.held_out > 99
    assert found.null.value > found.null.random_mean


@pytest.mark.long
def test_clusters_of_noise_are_best_on_their_own_matrix_and_by_chance_on_others() -> None:
    held_out = []
    for seed in range(6):
        found = at(3, clusterings(runs(signal=0.0, seed=seed), TASKS, TASKS, ANY))
        assert found.null.percentile > 97  # the best partition is always above random ones
        assert found.null.held_out is not None
        held_out.append(found.null.held_out)
        assert found.stability is not None
        assert found.stability < 0.5
    # The mean of 6 x 5 uniform percentiles has a standard deviation of 5.3.
    assert 30 < float(np.mean(held_out)) < 70


def test_with_one_run_nothing_is_a_finding() -> None:
    found = at(3, clusterings(runs(signal=6.0, n=1), TASKS, TASKS, ANY))
    assert found.null.held_out is None
    assert found.stability is None
    assert verdict(None, found) == "not tested: one run"  # type: ignore[arg-type]


def test_mean_and_deviation_are_over_the_runs_that_measured_a_pair() -> None:
    one, other = np.array([[1.0, np.nan], [3.0, 4.0]]), np.array([[5.0, 6.0], [3.5, np.nan]])
    np.testing.assert_allclose(mean_of([one, other]), [[3.0, 6.0], [3.25, 4.0]])
    deviation = deviation_of([one, other])
    assert deviation is not None
    np.testing.assert_allclose(deviation, [[np.std([1, 5], ddof=1), np.nan], [np.std([3, 3.5], ddof=1), np.nan]])
    assert deviation_of([one]) is None
    assert to_matrix(one) == ((1.0, None), (3.0, 4.0))
    np.testing.assert_array_equal(to_array(to_matrix(one)), one)


def test_a_pair_that_no_run_measured_is_an_error_that_names_source_and_recipient() -> None:
    values = np.array([[np.nan, 1.0], [np.nan, 2.0]])
    with pytest.raises(DataError, match="affinity of b for a was not measured"):
        complete(values, "ab")
    assert complete(np.array([[np.nan, 1.0], [2.0, 5.0]]), "ab").tolist() == [[0, 1], [2, 0]]


def test_the_rank_correlation_leaves_the_diagonal_out() -> None:
    one = np.array([[99.0, 1.0, 2.0], [3.0, -50.0, 4.0], [5.0, 6.0, 7.0]])
    other = np.exp(one)
    other[0, 0] = -1e9
    assert rank_correlation(one, other) == pytest.approx(1)
    assert rank_correlation(one, -one) == pytest.approx(-1)
    assert rank_correlation(one, np.ones((3, 3))) is None
