"""Contents of prompts without the templates around them."""

from __future__ import annotations

import numpy as np

from harness.data.content import Segments, content_keys, segments
from harness.task import Example

CHOICES = ("yes, the same", "no, different")


def question(template: str, content: str) -> Example:
    return Example(id="x", task="pair", prompt=template.format(content), target=CHOICES[0], choices=CHOICES)


def keys(examples: list[Example]) -> list[int]:
    found = Segments.empty(len(examples))
    for i, example in enumerate(examples):
        found.put(i, example)
    return content_keys([found], [np.zeros(len(examples), np.int16)])[0].tolist()


def test_a_line_that_lists_the_choices_is_no_content() -> None:
    example = question("Are these the same?\n{}\noptions: yes, the same; no, different", "a cold")
    assert segments(example) == ["Arethesethesame", "acold"]


def test_equal_contents_in_different_templates_have_equal_keys_and_others_do_not() -> None:
    templates = ("Are these the same?\n{}", "Compare: “{}”", "{}\nDo they mean the same?")
    contents = [f"symptom {i} and symptom {i + 1}" for i in range(30)]
    by_template = np.array(keys([question(t, c) for t in templates for c in contents])).reshape(3, 30)
    assert (by_template == by_template[0]).all()
    assert len(set(by_template[0].tolist())) == 30
    assert 0 not in by_template


def test_a_long_standard_reply_alone_does_not_make_contents_equal() -> None:
    reply = "please drink enough water and rest, and come back if the fever lasts longer than three days"
    dialogues = [f"patient: my complaint is number {i}\ndoctor: {reply}\nWhat comes next?" for i in range(8)]
    assert len(set(keys([question("{}", d) for d in dialogues]))) == 8


def test_a_prompt_of_templates_alone_has_no_content() -> None:
    assert keys([question("{}", "What is this?")] * 12) == [0] * 12


def test_templates_are_counted_over_all_splits_together() -> None:
    train = Segments.empty(20)
    for i in range(20):
        train.put(i, question("Are these the same?\n{}", f"symptom {i}"))
    test = Segments.empty(1)
    test.put(0, question("{}\nAre these the same?", "symptom 7"))
    tasks = [np.zeros(20, np.int16), np.zeros(1, np.int16)]
    of_train, of_test = content_keys([train, test], tasks)
    assert of_test[0] == of_train[7]
