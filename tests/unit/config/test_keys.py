"""Values of keys as they are typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from harness.config.keys import build_from_keys, parse_assignments
from harness.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Toy:
    """Fields that are lists."""

    sizes: tuple[int, ...] = (2, 3)
    colours: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("toy.sizes=4", Toy(sizes=(4,))),
        ("toy.sizes=4,5", Toy(sizes=(4, 5))),
        ("toy.sizes=[4, 5]", Toy(sizes=(4, 5))),
        ("toy.colours=red", Toy(colours=("red",))),
        ("toy.colours=red,blue", Toy(colours=("red", "blue"))),
    ],
)
def test_a_list_is_typed_with_brackets_with_commas_or_as_its_only_item(typed: str, expected: Toy) -> None:
    values: dict[str, Any] = {key.partition(".")[2]: value for key, value in parse_assignments([typed]).items()}
    assert build_from_keys(Toy, values, "toy") == expected


def test_an_item_of_the_wrong_type_is_named_with_its_key() -> None:
    with pytest.raises(UsageError, match=r"toy\.sizes\.1 = 'five'"):
        build_from_keys(Toy, {"sizes": "4,five"}, "toy")
