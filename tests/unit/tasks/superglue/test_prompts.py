"""The prompt formats of SuperGLUE: what a model reads, and what the correct answers are."""

from __future__ import annotations

import pytest
from superglue_lines import LINES, PASSAGE, wsc

from harness.task import NOT_PARSED, Example
from tasks.superglue.items import items
from tasks.superglue.prompts import ANOTHER_NOUN, FORMATS, examples, letter
from tasks.superglue.tasks import tasks_of

OPTIONS = "\nA. Yes\nB. No\nAnswer:"
ENTAILED = "\nIs the sentence below entailed by the sentence above?"
MARKED = "Ann gave Eve a kite because *she* had two."


def ask(task: str, form: str) -> Example:
    """The first test example of a task's line."""
    return next(e for item in items(task, LINES[task], "here") for e in examples(item, form, train=False))


@pytest.mark.parametrize(
    ("task", "form", "prompt", "target"),
    [
        ("boolq", "letters", f"{PASSAGE}\nQuestion: does bob have a kite{OPTIONS}", "B"),
        ("boolq", "t5", f"boolq passage: {PASSAGE} question: does bob have a kite", "False"),
        ("boolq", "lm-eval", f"{PASSAGE}\nQuestion: does bob have a kite?\nAnswer:", "no"),
        ("cb", "letters", f"Ann knew that Bob slept.\nBob slept{ENTAILED}\nA. Yes\nB. No\nC. Maybe\nAnswer:", "A"),
        ("cb", "t5", "cb hypothesis: Bob slept premise: Ann knew that Bob slept.", "entailment"),
        (
            "cb",
            "lm-eval",
            "Ann knew that Bob slept.\nQuestion: Bob slept. True, False, or Neither?\nAnswer:",
            "True",
        ),
        (
            "copa",
            "letters",
            "The kite flew off.\nWhat was the cause of this?\nA. The wind was strong.\nB. Ann slept.\nAnswer:",
            "A",
        ),
        (
            "copa",
            "t5",
            "copa choice1: The wind was strong. choice2: Ann slept. premise: The kite flew off. question: cause",
            "choice1",
        ),
        ("copa", "lm-eval", "The kite flew off because", "the wind was strong."),
        ("multirc", "letters", f"{PASSAGE}\nQuestion: Who has a toy?\nAnswer: Ann\nIs it true?{OPTIONS}", "A"),
        ("multirc", "t5", f"multirc question: Who has a toy? answer: Ann paragraph: {PASSAGE}", "True"),
        (
            "multirc",
            "lm-eval",
            f"{PASSAGE}\nQuestion: Who has a toy?\nAnswer: Ann\nIs the answer correct?",
            "yes",
        ),
        (
            "record",
            "letters",
            "Ann Lee met Bob. Ann gave a kite\nThe kite was from @placeholder.\nWhat is @placeholder?\nA. Ann Lee\n"
            "B. Bob\nC. Ann\nAnswer:",
            "A | C",
        ),
        (
            "record",
            "t5",
            "record query: The kite was from @placeholder. entities: Ann Lee, Bob, Ann passage: Ann Lee met Bob. Ann "
            "gave a kite",
            "Ann Lee | Ann",
        ),
        (
            "record",
            "lm-eval",
            "Ann Lee met Bob.\n\n  - Ann gave a kite\n  - The kite was from @placeholder.\n"
            "Question: Which name is @placeholder?\nAnswer:",
            "Ann Lee | Ann",
        ),
        ("rte", "letters", f"{PASSAGE}\nBob has a kite.{ENTAILED}{OPTIONS}", "B"),
        ("rte", "t5", f"rte hypothesis: Bob has a kite. premise: {PASSAGE}", "not_entailment"),
        ("rte", "lm-eval", f"{PASSAGE}\nQuestion: Bob has a kite. True or False?\nAnswer:", "False"),
        (
            "wic",
            "letters",
            f"Sentence 1: A red kite.\nSentence 2: A kite is a bird.\nAre 'kite' in the above two sentences the same?"
            f"{OPTIONS}",
            "B",
        ),
        ("wic", "t5", "wic sentence1: A red kite. sentence2: A kite is a bird. word: kite", "False"),
        (
            "wic",
            "lm-eval",
            "Sentence 1: A red kite.\nSentence 2: A kite is a bird.\nQuestion: Is the word 'kite' used in the same way "
            "in the two sentences above?\nAnswer:",
            "no",
        ),
        ("wsc", "letters", f"{MARKED}\nDoes *she* refer to Ann?{OPTIONS}", "A"),
        ("wsc", "t5", f"wsc: {MARKED}", "Ann"),
        (
            "wsc",
            "lm-eval",
            f'Passage: {MARKED}\nQuestion: In the passage above, does the pronoun "*she*" refer to "*Ann*"?\nAnswer:',
            "yes",
        ),
    ],
)
def test_a_format_asks_each_task_in_its_words(task: str, form: str, prompt: str, target: str) -> None:
    example = ask(task, form)
    assert (example.prompt, example.target) == (prompt, target)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("task", LINES)
def test_the_target_is_its_own_correct_answer_and_blank_text_is_not_parsed(task: str, form: str) -> None:
    example = ask(task, form)
    for rule in tasks_of(form)[task].protocols.values():
        gold = rule.parse(example.target, example)
        assert gold is not NOT_PARSED
        assert rule.parse("", example) is rule.parse(" \n ", example) is NOT_PARSED
        statistics = rule.statistics([gold, gold], [gold, NOT_PARSED])
        assert float(statistics.values(statistics.per_unit.sum(0))[rule.headline]) < 1.0


@pytest.mark.parametrize(
    ("premise", "question", "prompt", "choice"),
    [
        ("The kite flew off.", "effect", "The kite flew off therefore", "the wind was strong."),
        ("The kite flew off", "cause", "The kite flew off because", "the wind was strong."),
    ],
)
def test_copa_is_a_sentence_to_continue_in_the_format_of_lm_eval(
    premise: str, question: str, prompt: str, choice: str
) -> None:
    (item,) = items("copa", {**LINES["copa"], "premise": premise, "question": question}, "here")
    (example,) = examples(item, "lm-eval", train=False)
    assert (example.prompt, (example.choices or ())[0]) == (prompt, choice)


def test_an_entity_with_the_separator_in_it_is_one_entity() -> None:
    names = {"entities": ["Ann|Lee", "Bob\nLee", "Bob Lee"], "answers": ["Ann|Lee"]}
    line = {"passage": "Ann|Lee met Bob\nLee.", "query": "It is @placeholder.", "idx": {"passage": 0, "query": 1}}
    (item,) = items("record", {**line, **names}, "here")
    (example,) = examples(item, "t5", train=False)
    assert (example.target, example.choices) == ("Ann Lee", ("Ann Lee", "Bob Lee"))


def test_wsc_trains_on_nouns_that_are_meant_and_tests_on_all_in_the_format_t5() -> None:
    (item,) = items("wsc", wsc(label=False), "here")
    assert list(examples(item, "t5", train=True)) == []
    (example,) = examples(item, "t5", train=False)
    assert (example.target, example.choices) == (ANOTHER_NOUN, ("Ann",))
    assert [e.target for e in examples(item, "letters", train=True)] == ["B"]


@pytest.mark.parametrize(
    ("text", "pronoun", "index", "marked"),
    [
        ("She said that she won.", "she", 3, "She said that *she* won."),
        ("She said that she won.", "She", 0, "*She* said that she won."),
        ("It is here. The item, it fell.", "it", 6, "It is here. The item, *it* fell."),
        ("Ann saw him.", "him", 0, "Ann saw *him*."),
        ("The  dog lost its bone", "its", 3, "The dog lost *its* bone"),
    ],
)
def test_the_pronoun_is_marked_where_it_is_even_if_the_index_is_a_word_off(
    text: str, pronoun: str, index: int, marked: str
) -> None:
    target = {"span1_text": "Ann", "span2_text": pronoun, "span2_index": index}
    (item,) = items("wsc", {"idx": 0, "text": text, "label": True, "target": target}, "here")
    assert item.texts["text"] == marked


def test_letters_continue_after_z_as_the_columns_of_a_spreadsheet() -> None:
    assert [letter(i) for i in (0, 25, 26, 27, 51, 52, 701)] == ["A", "Z", "AA", "AB", "AZ", "BA", "ZZ"]
