"""Contributions of examples against naive loops, random swaps against all swaps, and both in a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test
from sklearn.metrics import f1_score

from harness.scoring.randomisation import contributions, swap_p
from harness.scoring.statistics import Resampled, Side, difference, mean_over_tasks, resample, unit_counts
from harness.task import Floats
from tasks.common.metrics import label_statistics, mean_statistics


def macro_f1(golds: Sequence[str], answers: Sequence[str]) -> float:
    return float(f1_score(golds, answers, average="macro", zero_division=0))


def labels(n: int, classes: int, seed: int = 0) -> tuple[list[str], list[str], list[str]]:
    """Golds and the answers of two sides."""
    rng = np.random.default_rng(seed)
    golds = rng.choice(classes, n, p=(w := 1 / np.arange(1, classes + 1)) / w.sum())
    sides = [np.where(rng.random(n) < share, golds, rng.integers(0, classes, n)) for share in (0.55, 0.55)]
    return [str(g) for g in golds], [str(a) for a in sides[0]], [str(b) for b in sides[1]]


def scored(golds: Sequence[str], answers: Sequence[str]) -> Resampled:
    return resample(label_statistics(golds, answers), "macro_f1", unit_counts("toy", len(golds), 400))


def every_swap(differences: Floats) -> float:
    """p over all 2^n swaps, by a loop."""
    observed = abs(differences.sum()) - 1e-9
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in product((1, -1), repeat=10)]
    return float(np.mean([abs(s) >= observed for s in sums]))


@pytest.mark.parametrize("seed", range(4))
def test_random_swaps_agree_with_all_swaps(seed: int) -> None:
    differences = np.random.default_rng(seed).normal(0.3, 1.0, 10)
    assert swap_p(differences) == pytest.approx(every_swap(differences), abs=0.03)


def test_random_swaps_are_the_paired_permutation_test_of_scipy() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random(60), rng.random(60) - 0.08
    expected = permutation_test(
        (a, b), lambda x, y: (x - y).mean(), permutation_type="samples", n_resamples=5000, rng=np.random.default_rng(1)
    )
    assert swap_p((a - b) / 60) == pytest.approx(expected.pvalue, abs=0.03)


def test_the_swaps_of_right_and_wrong_answers_are_mcnemars_test() -> None:
    differences = np.r_[np.ones(9), -np.ones(3), np.zeros(50)] / 62
    assert swap_p(differences) == pytest.approx(binomtest(3, 12).pvalue, abs=0.03)


def test_swaps_that_never_reach_the_difference_say_only_that_p_is_small() -> None:
    assert swap_p(np.ones(40)) is None
    assert swap_p(np.zeros(40)) == 1.0


def test_p_is_a_share_of_swaps_and_the_same_each_time() -> None:
    differences = np.random.default_rng(2).normal(0.2, 1.0, 30)
    found = swap_p(differences, swaps=99)
    assert found == swap_p(differences, swaps=99) == swap_p(-differences, swaps=99)
    assert found is not None
    assert (found * 100) == pytest.approx(round(found * 100))


def test_the_contributions_to_a_mean_are_its_deviations() -> None:
    x = np.random.default_rng(3).random(30)
    np.testing.assert_allclose(contributions(mean_statistics({"mean": x}), "mean"), (x - x.mean()) / 30)


def test_the_contributions_to_a_macro_f1_are_those_of_leaving_each_example_out() -> None:
    golds, answers, _ = labels(25, 6)
    left = [
        macro_f1([g for j, g in enumerate(golds) if j != i], [a for j, a in enumerate(answers) if j != i])
        for i in range(25)
    ]
    expected = (np.mean(left) - np.array(left)) * 24 / 25
    np.testing.assert_allclose(contributions(label_statistics(golds, answers), "macro_f1"), expected, atol=1e-12)


def test_a_wide_table_has_the_same_contributions_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = label_statistics(*labels(40, 9)[:2])
    whole = contributions(statistics, "macro_f1")
    monkeypatch.setattr("harness.scoring.randomisation._BLOCK", 70)
    np.testing.assert_allclose(contributions(statistics, "macro_f1"), whole)


def every_recomputed_swap(golds: list[str], a: list[str], b: list[str]) -> Floats:
    """The difference of the macro-F1 after each of the 2^n swaps of whole answers."""
    both = label_statistics(golds + golds, a + b)
    rows, others = np.split(both.per_unit, 2)
    swapped = np.array(list(product((0.0, 1.0), repeat=len(golds)))) @ (others - rows)
    one, two = (both.values(sums)["macro_f1"] for sums in (rows.sum(axis=0) + swapped, others.sum(axis=0) - swapped))
    differences: Floats = one - two
    return differences


def test_recomputed_swaps_are_those_of_a_loop() -> None:
    golds, a, b = labels(4, 3)
    expected = []
    for swaps in product((False, True), repeat=4):
        one = [y if s else x for x, y, s in zip(a, b, swaps, strict=True)]
        two = [x if s else y for x, y, s in zip(a, b, swaps, strict=True)]
        expected.append(macro_f1(golds, one) - macro_f1(golds, two))
    np.testing.assert_allclose(every_recomputed_swap(golds, a, b), expected)


def test_the_variance_of_a_macro_f1_is_that_of_all_swaps_or_more_and_the_bootstraps_is_less() -> None:
    swapped = jackknife = bootstrap = 0.0
    for seed in range(40):
        golds, a, b = labels(10, 8, seed)
        left, right = scored(golds, a), scored(golds, b)
        assert left.deviations is not None
        assert right.deviations is not None
        swapped += every_recomputed_swap(golds, a, b).var()
        jackknife += ((left.deviations - right.deviations) ** 2).sum()
        bootstrap += (left.draws - right.draws).var()
    assert bootstrap < swapped < jackknife


def test_a_difference_needs_both_tests_to_be_significant() -> None:
    """Five answers of sixty differ, all in favour of one side: Welch's p is below 5 %, that of swaps 1/16."""
    counts = unit_counts("toy", 60)
    a, b = (
        Side(runs=[resample(mean_statistics({"mean": x}), "mean", counts)], seeded=False)
        for x in (np.r_[np.ones(35), np.zeros(25)], np.r_[np.ones(30), np.zeros(30)])
    )
    found = difference(a, b)
    assert abs(found.value) / found.error > 2
    assert found.p == pytest.approx(1 / 16, abs=0.02)
    assert difference(b, a).p == found.p


def test_runs_without_deviations_are_compared_by_their_draws() -> None:
    golds, a, b = labels(200, 30)
    sides = [Side(runs=[scored(golds, answers)]) for answers in (a, b)]
    old = [Side(runs=[replace(run, deviations=None) for run in side.runs]) for side in sides]
    draws = sides[0].runs[0].draws - sides[1].runs[0].draws
    assert difference(*old).error == pytest.approx(draws.std())
    assert difference(old[0], sides[1]).error == pytest.approx(draws.std())
    assert difference(*sides).error > draws.std()


def test_a_mean_over_tasks_has_the_deviations_of_all_tasks() -> None:
    tasks = [scored(*labels(n, 5, seed=n)[:2]) for n in (30, 50)]
    mean = mean_over_tasks(tasks)
    assert mean.deviations is not None
    expected = sum((t.deviations**2).sum() for t in tasks if t.deviations is not None) / 4
    assert ((mean.deviations**2).sum(), mean.n_tasks) == (pytest.approx(expected), 2)
    assert mean_over_tasks([tasks[0], replace(tasks[1], deviations=None)]).deviations is None
