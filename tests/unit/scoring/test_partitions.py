"""The best partition is the best of all partitions, and its value is the one of the paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from harness.errors import UsageError
from harness.scoring import partitions
from harness.scoring.partitions import (
    Rules,
    Value,
    adjusted_rand,
    best_overlapping,
    best_partitions,
    columns,
    group_value,
    labels,
    n_partitions,
    partition_value,
    random_partition,
    random_values,
)

Floats = NDArray[np.float64]
ANY = Rules(smallest=1, largest=99)


def every_partition(items: list[int]) -> Iterator[list[list[int]]]:
    """All partitions of the items."""
    if not items:
        yield []
        return
    first, *rest = items
    for partition in every_partition(rest):
        for i, group in enumerate(partition):
            yield [*partition[:i], [first, *group], *partition[i + 1 :]]
        yield [[first], *partition]


def by_hand(affinity: Floats, groups: list[list[int]], value: str) -> float:
    """Each task's affinity from the other tasks of its group, summed over tasks; 0 for a task alone."""
    total = 0.0
    for group in groups:
        for task in group:
            others = [affinity[other][task] for other in group if other != task]
            total += sum(others) / (len(others) if value == "mean" and others else 1)
    return total


def matrix(n: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, n))


def test_the_value_of_a_group_is_the_affinity_for_each_of_its_tasks_summed_over_tasks() -> None:
    affinity = np.array([[9.0, 1.0, 2.0], [3.0, 9.0, 4.0], [5.0, 6.0, 9.0]])
    # for task 0: (3 + 5) / 2, for 1: (1 + 6) / 2, for 2: (2 + 4) / 2
    assert group_value(affinity, [0, 1, 2], "mean") == pytest.approx(4 + 3.5 + 3)
    assert group_value(affinity, [0, 1, 2], "sum") == pytest.approx(8 + 7 + 6)
    assert group_value(affinity, [1], "mean") == group_value(affinity, [1], "sum") == 0
    assert partition_value(affinity, [[0, 2], [1]], "sum") == pytest.approx(5 + 2)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
@pytest.mark.parametrize("value", ["sum", "mean"])
@pytest.mark.parametrize("limits", [(1, 99), (1, 3), (2, 4)])
def test_the_best_partition_is_that_of_brute_force(n: int, limits: tuple[int, int], value: Value) -> None:
    affinity, sizes = matrix(n, seed=n), Rules(smallest=limits[0], largest=limits[1], value=value)
    allowed = [p for p in every_partition(list(range(n))) if all(limits[0] <= len(g) <= limits[1] for g in p)]
    found = best_partitions(affinity, range(1, n + 1), sizes)
    assert found.keys() == {len(p) for p in allowed}
    for k, partition in found.items():
        best = max(by_hand(affinity, p, value) for p in allowed if len(p) == k)
        assert partition_value(affinity, partition, value) == pytest.approx(best)
        assert by_hand(affinity, [list(g) for g in partition], value) == pytest.approx(best)
        assert sorted(t for g in partition for t in g) == list(range(n))
        assert len(partition) == k


def test_an_integer_programme_finds_the_same_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    affinity, sizes = matrix(9, seed=4), Rules(smallest=1, largest=4)
    exact = best_partitions(affinity, range(1, 10), sizes)
    monkeypatch.setattr(partitions, "MOST_BY_SUBSETS", 5)
    programme = best_partitions(affinity, range(1, 10), sizes)
    assert programme.keys() == exact.keys() == {3, 4, 5, 6, 7, 8, 9}
    for k, partition in exact.items():
        assert {frozenset(g) for g in programme[k]} == {frozenset(g) for g in partition}


def test_planted_groups_of_twenty_tasks_come_back() -> None:
    home = [i % 5 for i in range(20)]
    affinity = 1.0 * (np.array(home)[:, None] == home) + 0.3 * matrix(20, seed=1)
    partition = best_partitions(affinity, [5], Rules(smallest=3, largest=4))[5]
    assert adjusted_rand(labels(partition, 20), home) == 1


def test_more_tasks_than_can_be_searched_is_an_error_that_gives_the_largest_size() -> None:
    with pytest.raises(UsageError, match="--max-size 5 or less"):
        best_partitions(matrix(23, seed=0), [2], Rules(smallest=1, largest=23))
    assert len(columns(23, Rules(smallest=1, largest=5))) <= partitions.MOST_COLUMNS


@pytest.mark.parametrize("value", ["sum", "mean"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_overlapping_groups_are_those_of_brute_force(k: int, value: Value) -> None:
    n = 4
    affinity = matrix(n, seed=7)
    rules = replace(ANY, value=value)
    groups = columns(n, rules)

    def worth(chosen: tuple[int, ...]) -> float:
        best = []
        for task in range(n):
            scores = [
                (np.mean if value == "mean" else np.sum)([affinity[o][task] for o in groups[g] if o != task] or [0.0])
                for g in chosen
                if task in groups[g]
            ]
            best.append(max(scores, default=-np.inf))
        return float(sum(best))

    best = max(worth(c) for size in range(1, k + 1) for c in combinations(range(len(groups)), size))
    found = best_overlapping(affinity, k, rules)
    assert found.value == pytest.approx(best)
    assert len(found.groups) <= k
    assert all(task in found.groups[home] for task, home in enumerate(found.served_by))


@pytest.mark.parametrize("sizes", [[3], [2, 2], [1, 2], [1, 1, 2], [2, 2, 1, 1]])
def test_random_partitions_that_exclude_one_another_are_all_that_there_are(sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    drawn: list[Any] = []
    for _ in range(n_partitions(sizes)):
        drawn.append(random_partition(sizes, rng, other_than=drawn))
    every = {
        frozenset(tuple(sorted(order[end - size : end])) for size, end in zip(sizes, np.cumsum(sizes), strict=True))
        for order in permutations(range(sum(sizes)))
    }
    assert {frozenset(one) for one in drawn} == every
    assert len(drawn) == len(every)


def test_random_partitions_have_the_sizes_and_every_one_occurs_equally_often() -> None:
    rng = np.random.default_rng(0)
    drawn = [frozenset(map(frozenset, random_partition([2, 2], rng))) for _ in range(3000)]
    counts = [drawn.count(p) for p in set(drawn)]
    assert len(counts) == 3
    assert max(abs(c - 1000) for c in counts) < 120  # 4.6 standard deviations
    for value in ("sum", "mean"):
        affinity = matrix(4, seed=2)
        possible = {
            round(by_hand(affinity, p, value), 9)
            for p in every_partition([0, 1, 2, 3])
            if sorted(map(len, p)) == [1, 3]
        }
        assert set(random_values(affinity, [3, 1], value, 50, rng).round(9).tolist()) == possible


def test_the_adjusted_rand_index_is_that_of_scikit_learn_and_1_for_renamed_clusters() -> None:
    assert adjusted_rand(["a", "a", "b", "c"], [5, 5, 1, 0]) == 1
    one, other = [0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2]
    assert adjusted_rand(one, other) == pytest.approx(adjusted_rand_score(one, other))
