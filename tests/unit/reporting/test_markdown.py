"""Parts of Markdown tables: escaped text, short names of tasks, tables that fit on a page."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.reporting.markdown import escape, heading, short_names, side_by_side, unbroken


@given(st.text())
def test_escaped_text_is_one_line_without_markup(text: str) -> None:
    safe = escape(text)
    assert len(safe.splitlines()) <= 1
    assert "<" not in safe
    assert ">" not in safe
    for sign in "`*[]|~":
        assert not re.search(rf"(?<!\\)(\\\\)*{re.escape(sign)}", safe)


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["CHIP-STS", "CHIP-CTC", "MedDG", "A-V2"], ["STS", "CTC", "MedDG", "A-V2"]),
        (["I-V2-NER", "I-V2-SR", "X"], ["NER", "SR", "X"]),
        (["A-x", "A-y", "B-x", "B-z"], ["A-x", "A-y", "B-x", "B-z"]),
        (["x", "A-x", "A-y"], ["x", "A-x", "A-y"]),
    ],
)
def test_short_names_stay_distinct(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short


def test_many_tasks_are_split_into_tables_of_equal_width() -> None:
    tables = side_by_side([f"t{i}" for i in range(16)])
    assert [len(t) for t in tables] == [8, 8]
    assert [task for t in tables for task in t] == [f"t{i}" for i in range(16)]
    assert side_by_side([]) == []


def test_columns_are_aligned_right_but_for_the_named_ones() -> None:
    assert list(heading(["method", "mean"])) == ["| method | mean |", "| :-- | --: |"]
    assert unbroken("95 % interval") == "95\u00a0%\u00a0interval"
