"""Parts of Markdown tables: escaped text, short names of tasks, tables that fit on a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.reporting.markdown import PADDING, PAGE, escape, heading, short_names, side_by_side, unbroken

ROOT = Path(__file__).parents[3]


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


def widths(text: str) -> list[int]:
    """The width of every table, in characters; a cell of several words may break at its spaces, not at others."""
    found, columns = [], []
    for line in [*text.splitlines(), ""]:
        if not line.startswith("|"):
            found += [sum(width + PADDING for width in columns)] if columns else []
            columns = []
        elif not set(line) <= set("|:- "):
            cells_ = [cell.strip().replace("**", "").replace("&nbsp;", " ") for cell in line.strip("|").split(" | ")]
            longest = [max((len(word) for word in re.split(r"(?<=\S) ", cell)), default=0) for cell in cells_]
            columns = [max(pair) for pair in zip(longest, columns or [0] * len(longest), strict=True)]
    return found


BOARDS = [file.with_suffix(".md") for file in sorted((ROOT / "leaderboards").glob("*.json"))]


@pytest.mark.parametrize("file", BOARDS, ids=lambda file: file.stem)
def test_no_table_of_a_committed_board_is_wider_than_a_page_and_its_summary_is_at_the_top(file: Path) -> None:
    text = file.read_text("utf-8")
    assert max(widths(text)) <= PAGE
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(("> ", "- ")))
    assert first < 6
    assert first < next(i for i, line in enumerate(lines) if line.startswith("|"))


def test_long_names_of_tasks_make_more_tables_rather_than_wide_ones() -> None:
    tasks = [f"a-task-with-a-long-name-{i:02d}x{'y' * i}" for i in range(12)]
    tables = side_by_side(tasks)
    assert [task for names in tables for task in names] == tasks
    assert 1 < len(tables) < 12
    for names in tables:
        assert sum(max(len(name), 6) + PADDING for name in names.values()) + 24 + 8 + 2 * PADDING <= PAGE


def test_a_name_longer_than_a_page_has_a_table_of_its_own() -> None:
    assert [list(names) for names in side_by_side(["x" * 300, "y" * 300])] == [["x" * 300], ["y" * 300]]
