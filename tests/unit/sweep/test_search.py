"""Grids that grow until their best is inside: what is tried next, given the results so far."""

from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.sweep.search import Axis, Point, Search

LR = Axis.of("train.lr", [1e-3, 1e-2])


def run(search: Search, mean: Callable[[Point], float | None]) -> dict[Point, float | None]:
    """Try points until none follows."""
    results: dict[Point, float | None] = {}
    following = search.start()
    while following:
        assert not set(following) & set(results)
        results |= {point: mean(point) for point in following}
        following = search.following(results)
    return results


def peak(at: float) -> Callable[[Point], float]:
    """A curve over the logarithm of the learning rate with one maximum."""
    return lambda point: -abs(math.log10(float(point[0])) - math.log10(at))  # type: ignore[arg-type]


def test_a_grid_grows_towards_its_best_until_that_is_inside() -> None:
    search = Search(axes=(LR,), max_points=9)
    results = run(search, peak(0.09))
    assert sorted(results) == [(1e-3,), (1e-2,), (0.1,), (1.0,)]
    assert (search.best(results), search.open_ends(results)) == ((0.1,), ())


def test_it_grows_downwards_by_the_ratio_of_its_last_two_values() -> None:
    search = Search(axes=(Axis.of("train.lr", [3e-3, 1e-3]),), max_points=9)
    results = run(search, peak(3e-4))
    assert sorted(results) == [(1.1e-4,), (3.3e-4,), (1e-3,), (3e-3,)]


def test_a_divergence_closes_its_side() -> None:
    search = Search(axes=(LR,), max_points=9)
    results = run(search, lambda point: None if float(point[0]) > 5e-3 else float(point[0]))  # type: ignore[arg-type]
    assert sorted(results) == [(1e-4,), (1e-3,), (1e-2,)]
    assert (search.best(results), search.open_ends(results)) == ((1e-3,), ())


def test_if_all_diverge_smaller_rates_are_tried() -> None:
    search = Search(axes=(LR,), max_points=9)
    results = run(search, lambda point: None if float(point[0]) > 2e-4 else 1.0)  # type: ignore[arg-type]
    assert min(results) < (2e-4,)
    assert search.best(results) is not None


def test_at_the_limit_the_open_end_is_named() -> None:
    search = Search(axes=(LR,), max_points=4)
    results = run(search, lambda point: float(point[0]))  # type: ignore[arg-type]
    assert len(results) == 4
    assert search.open_ends(results) == ("train.lr",)


def test_a_flat_curve_ends_the_search() -> None:
    search = Search(axes=(LR,), max_points=9)
    results = run(search, lambda _: 0.5)
    assert len(results) <= 4
    assert search.open_ends(results) == ()


def test_one_rate_grows_to_both_sides() -> None:
    search = Search(axes=(Axis.of("train.lr", [1e-2]),), max_points=9)
    assert search.following({(1e-2,): 0.5}) == [(0.03,), (0.0033,)]


def test_a_second_field_grows_at_the_best_learning_rate_only_and_words_do_not_grow() -> None:
    axes = (LR, Axis.of("method.gate_lr", [10, 1]), Axis.of("train.loss", ["token", "task"]))
    search = Search(axes=axes, max_points=30)
    results = run(search, lambda p: -abs(float(p[0]) - 1e-2) - abs(p[1] - 100) + (p[2] == "task"))  # type: ignore[operator,arg-type]
    assert search.best(results) == (1e-2, 100, "task")
    assert search.open_ends(results) == ()
    assert (1e-2, 1000, "task") in results
    assert {point[2] for point in results if point[1] > 10} == {"task"}


@given(
    values=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=4, unique_by=lambda v: f"{v:.1g}"),
    limit=st.integers(4, 12),
    heights=st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=12, max_size=12),
)
@settings(max_examples=200, deadline=None)
def test_every_search_ends_within_its_limit_and_says_whether_its_best_is_inside(
    values: list[float], limit: int, heights: list[float | None]
) -> None:
    search = Search(axes=(Axis.of("train.lr", values),), max_points=limit)
    order: list[Point] = []

    def mean(point: Point) -> float | None:
        order.append(point)
        return heights[len(order) - 1]

    results = run(search, mean)
    assert len(results) <= limit
    best = search.best(results)
    if best is None:
        assert len(results) == limit
    elif len(results) < limit:
        assert search.open_ends(results) == ()
        rates = sorted(results)
        assert best not in (rates[0], rates[-1])


def test_fields_other_than_learning_rates_keep_their_values() -> None:
    search = Search(axes=(LR, Axis.of("method.dropout", [0.1, 0.3])), max_points=9)
    results = run(search, lambda p: p[1] - abs(float(p[0]) - 2e-3))  # type: ignore[operator,arg-type]
    assert {point[1] for point in results} == {0.1, 0.3}
    assert search.open_ends(results) == ()
