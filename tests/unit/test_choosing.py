"""A choice survives as text, and a text may itself be a choice."""

from __future__ import annotations

import math

import pytest

from harness.choosing import Choice, chosen, read_choice
from harness.task import NOT_PARSED, Example

TOYS = Example(id="1", task="toys", prompt="Which toy?", target=" car", choices=(" car", " doll", " kite"))


def test_a_choice_is_read_from_its_text_as_it_was() -> None:
    choice = Choice(log_likelihoods=(-3.25, -0.5, -1e-7), greedy=(False, False, True))
    assert read_choice(choice.text(TOYS), TOYS) == choice
    assert chosen(choice.text(TOYS), TOYS) == " kite"


def test_the_first_of_equal_choices_is_chosen() -> None:
    assert Choice(log_likelihoods=(-1.0, -0.5, -0.5), greedy=(False,) * 3).best == 1


@pytest.mark.parametrize("text", [" doll", "doll", "doll\n"])
def test_the_text_of_a_choice_has_chosen_it(text: str) -> None:
    choice = read_choice(text, TOYS)
    assert isinstance(choice, Choice)
    assert choice.log_likelihoods == (-math.inf, 0.0, -math.inf)
    assert choice.greedy == (False, True, False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "drum",
        "[]",
        "3",
        "{}",
        '{"log_likelihoods": [-1, -2], "greedy": [true, false]}',
        '{"log_likelihoods": [-1, -2, NaN], "greedy": [true, false, false]}',
        '{"log_likelihoods": [1' + "0" * 400 + ', 1, 1], "greedy": [true, false, false]}',
        '{"log_likelihoods": null, "greedy": null}',
        "[" * 100_000,
    ],
)
def test_any_other_text_is_unparsed(text: str) -> None:
    assert read_choice(text, TOYS) is NOT_PARSED
    assert chosen(text, TOYS) is NOT_PARSED
