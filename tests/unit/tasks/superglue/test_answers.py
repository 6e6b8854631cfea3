"""The parsers of SuperGLUE's answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.task import NOT_PARSED, Example
from tasks.superglue.answers import parse_entity, parse_label, parse_lettered_entity, parse_noun, parse_verdict


def example(task: str, *choices: str, id: str = "x-1") -> Example:
    return Example(id=id, task=task, prompt="?", target="?", choices=choices)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A", "entailment"),
        (" b.\n", "contradiction"),
        ("C. Maybe", "neutral"),
        ("(A) Yes", "entailment"),
        ("A\nB", "entailment"),
        ("A dog", None),
        ("AB", None),
        ("D", None),
        ("Yes", None),
        ("", None),
    ],
)
def test_a_letter_may_have_punctuation_or_its_option_after_it(text: str, label: str | None) -> None:
    found = parse_label(text, example("cb", "A", "B", "C"))
    assert found == (NOT_PARSED if label is None else label)


@pytest.mark.parametrize(
    ("text", "label"), [(" True", "True"), ("false.", "False"), ("True\nbecause", "True"), ("True False", None)]
)
def test_a_word_is_the_whole_first_line(text: str, label: str | None) -> None:
    assert parse_label(text, example("boolq", "False", "True")) == (NOT_PARSED if label is None else label)


@pytest.mark.parametrize(
    ("text", "noun", "label"),
    [
        ("the bunny", "bunny", "True"),
        ("fuzzy bunny", "The bunny", "True"),
        ("bunny", "her fuzzy bunny", "True"),
        ("Bunny.", "bunny", "True"),
        ("hare", "bunny", "False"),
        ("the", "the bunny", "False"),
        ("bunny's", "bunny", "False"),
        ("Ann's bunny", "Ann's", "True"),
        ("fuzzy hare", "fuzzy bunny", "False"),
        ("another noun", "bunny", "False"),
    ],
)
def test_a_noun_is_right_if_its_words_are_among_those_of_the_reference_or_the_other_way_round(
    text: str, noun: str, label: str
) -> None:
    assert parse_noun(text, example("wsc", noun)) == label


def test_answers_have_the_question_and_the_passage_that_they_belong_to() -> None:
    answer = Example(id="multirc-4-2-9", task="multirc", prompt="?", target="A", choices=("B", "A"), group="4-2")
    verdict = parse_verdict("A", answer)
    assert (verdict.passage, verdict.question, verdict.value) == ("4", "4-2", "True")  # type: ignore[union-attr]
    found = parse_entity("Ann Lee | Ann", example("record", id="record-8-30"))
    assert (found.passage, found.names) == ("8", ("Ann Lee", "Ann"))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("B", ("Bob",)),
        ("a | B", ("Ann", "Bob")),
        ("A\nB", ("Ann", "Bob")),
        ("B. Bob", ("Bob",)),
        ("b and more", None),
        ("C", None),
        ("Bob", None),
    ],
)
def test_the_letter_of_an_entity_is_the_entity(text: str, names: tuple[str, ...] | None) -> None:
    found = parse_lettered_entity(text, example("record", "Ann", "Bob", id="record-1-1"))
    assert (None if found is NOT_PARSED else found.names) == names  # type: ignore[union-attr]


@pytest.mark.parametrize("parse", [parse_label, parse_verdict, parse_lettered_entity, parse_entity, parse_noun])
@given(text=st.text(), choices=st.lists(st.text(max_size=4), max_size=3))
def test_any_text_is_an_answer_or_not_parsed(
    parse: Callable[[str, Example], object], text: str, choices: list[str]
) -> None:
    found = parse(text, example("wsc", *choices, id=text))
    assert found == parse(text, example("wsc", *choices, id=text))


def test_time_is_linear_in_the_length_of_a_text(count_calls: Callable[..., int]) -> None:
    for parse in (parse_label, parse_lettered_entity, parse_entity, parse_noun):
        for piece in ("A ", "(A", "A.\n", "*"):
            short, long = (
                count_calls(parse, piece * n, example("wsc", "Ann", "Bob", id="wsc-1")) for n in (2000, 20_000)
            )
            assert long <= 12 * short + 200
