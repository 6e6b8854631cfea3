"""Numbers for people: units, signs, intervals, and the dash for a missing number."""

from __future__ import annotations

from harness.reporting.numbers import (
    MISSING,
    count,
    counted,
    duration,
    interval,
    number,
    or_missing,
    p_value,
    percent,
    percent_range,
    points,
    points_range,
    share,
    size,
)


def test_a_missing_number_prints_as_a_dash() -> None:
    missing = [percent(None), percent_range(None), points(None), number(None), interval(None, None, None)]
    missing += [p_value(None), share(None), duration(None), size(None), or_missing(None)]
    assert set(missing) == {MISSING}
    assert or_missing(0) == "0"


def test_durations_are_in_words() -> None:
    assert [duration(s) for s in (0.42, 45.2, 600, 11_100)] == ["0.4 s", "45 s", "10 min", "3 h 05 min"]


def test_parameters_are_counted_in_three_or_four_digits() -> None:
    assert [count(n) for n in (0, 950, 198_656, 3_178_496, 7_615_616_512)] == [
        "0",
        "950",
        "198.7 k",
        "3.18 M",
        "7.62 G",
    ]


def test_memory_is_in_binary_units() -> None:
    assert [size(n) for n in (310 * 2**20, 15_246_000_000)] == ["310 MiB", "14.2 GiB"]


def test_scores_are_in_percent_and_differences_have_a_sign() -> None:
    assert (percent(0.8312), percent_range((0.801, 0.86))) == ("83.1", "80.1 to 86.0")
    assert [points(x) for x in (0.004, -0.02, -0.0001)] == ["+0.4", "-2.0", "+0.0"]
    assert points_range(-0.009, 0.017) == "-0.9 to 1.7"


def test_other_numbers_have_a_fixed_count_of_digits() -> None:
    assert (number(1339.2), number(0.01234, 4), number(0.01234, 4, signed=True)) == ("1,339", "0.0123", "+0.0123")
    assert (interval(0.9841, 0.97, 0.99), interval(0.9841, None, None)) == ("0.984 [0.970, 0.990]", "0.984")
    assert (p_value(0.01234), share(35.23), share(191.2)) == ("0.0123", "35.2", "191")


def test_a_count_of_one_has_a_noun_in_the_singular() -> None:
    assert [counted(n, "task") for n in (0, 1, 2, 1339)] == ["0 tasks", "1 task", "2 tasks", "1,339 tasks"]
