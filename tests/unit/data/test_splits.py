"""Parts of a split that have no content in common."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.data.splits import in_part

PAIRS = st.lists(st.tuples(st.text("ab ", max_size=4), st.text("yn", max_size=2)), max_size=30)


@given(PAIRS)
def test_every_example_is_in_one_part_and_equal_contents_are_in_the_same(pairs: list[tuple[str, str]]) -> None:
    tune, report = in_part(pairs, "tune"), in_part(pairs, "report")
    assert (tune != report).all()
    by_content: dict[tuple[str, str], set[bool]] = {}
    for (prompt, target), inside in zip(pairs, tune, strict=True):
        by_content.setdefault(("".join(prompt.split()), "".join(target.split())), set()).add(bool(inside))
    assert all(len(parts) == 1 for parts in by_content.values())
    assert sum(True in parts for parts in by_content.values()) == len(by_content) // 2


def test_the_order_of_examples_does_not_matter() -> None:
    pairs = [(f"prompt {i}", "yes") for i in range(20)]
    assert in_part(pairs, "tune").tolist() == in_part(pairs[::-1], "tune").tolist()[::-1]
