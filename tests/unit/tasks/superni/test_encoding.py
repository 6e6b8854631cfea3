"""Prompts are Tk-Instruct's, character by character."""

from __future__ import annotations

from typing import Any

from tasks.superni.encoding import Encoding
from tasks.superni.task_file import Demonstration, TaskContent

TASK = TaskContent(
    definition="Name the colour ",
    positive=(
        Demonstration(input="a sky", output="blue", explanation="Skies are blue"),
        Demonstration(input="Is grass blue?", output="green!", explanation=None),
        Demonstration(input="snow", output="white", explanation=""),
    ),
    negative=(Demonstration(input="coal", output="round", explanation="Not a colour."),),
    instances=(),
)
QUESTION = "Now complete the following example -\nInput: a {}.\nOutput: "


def prompt(given: str, **options: Any) -> str:
    defaults = {"definition": True, "positive": 2, "negative": 0, "explanation": False, "max_characters": None}
    return Encoding(**(defaults | options)).prompt(TASK, given)


def test_the_default_prompt_has_the_definition_and_two_positive_examples() -> None:
    assert prompt(" a rose\n") == (
        "Definition: Name the colour.\n\n"
        " Positive Example 1 -\nInput: a sky.\n Output: blue.\n\n"
        " Positive Example 2 -\nInput: Is grass blue?\n Output: green!\n\n" + QUESTION.format("rose")
    )


def test_negative_examples_and_explanations_follow_their_examples() -> None:
    assert prompt("a rose", positive=1, negative=3, explanation=True) == (
        "Definition: Name the colour.\n\n"
        " Positive Example 1 -\nInput: a sky.\n Output: blue.\n Explanation: Skies are blue.\n\n"
        " Negative Example 1 -\nInput: coal.\n Output: round.\n Explanation: Not a colour.\n\n"
        + QUESTION.format("rose")
    )


def test_a_prompt_can_be_the_instance_only() -> None:
    assert prompt("a rose", definition=False, positive=0) == QUESTION.format("rose")


def test_an_empty_input_is_closed_as_by_tk_instruct() -> None:
    assert prompt("  ", definition=False, positive=0) == QUESTION.format("").replace("a .", ".")


def test_examples_are_added_while_they_fit() -> None:
    one, two = prompt("a rose", positive=1), prompt("a rose", positive=2)
    assert prompt("a rose", max_characters=len(two)) == two
    assert prompt("a rose", max_characters=len(two) - 1) == one
    assert prompt("a rose", max_characters=len(one) - 1) == prompt("a rose", positive=0)
    assert prompt("a rose", max_characters=1) == prompt("a rose", positive=0)
