"""The prompt formats: how an item of each task is asked, and what the answers are.

``letters``: the options have letters, and the answer is the letter. The prompts of boolq, multirc, rte and wic are
those of the notebook on Poly in PEFT's examples, by an author of C-Poly; those of the other tasks follow them.
``t5``: the task's name and its fields, and a word as the answer (Raffel et al., JMLR 2020, appendix D). WSC asks for
the noun that a pronoun refers to.
``lm-eval``: the questions of lm-evaluation-harness, with the answers that it ranks by likelihood as targets. COPA is a
sentence to continue, and ReCoRD, which has no question there, asks for the name that is missing.

Targets begin without a space. A format changes prompts and targets, and therefore is part of a run's identity.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from harness.task import Example
from tasks.superglue.items import LABELS, SEPARATOR, Item

ANOTHER_NOUN: Final = "another noun"
"""The reference of WSC in the format t5 where the pronoun does not refer to the noun: which other one is not known."""
_HIGHLIGHT: Final = "@highlight"
_AFTER_SENTENCE = re.compile(r"(?<=[.?!\"'])\s*\n@highlight\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One item in a format.

    choices: for a task with labels, the answers in the order of its ``LABELS``; otherwise what the answers are parsed
        with. targets: the correct answers, of which ReCoRD may have several. trained: whether there is a target that
        can be trained on.
    """

    prompt: str
    choices: tuple[str, ...]
    targets: tuple[str, ...]
    trained: bool = True


Ask = Callable[[Item], Asked]


def examples(item: Item, form: str, *, train: bool) -> Iterator[Example]:
    """The examples of an item in a format.

    For training, an item with several correct answers gives one example for each, with their numbers added to the id,
    as in T5. Otherwise it is one example whose target lists the correct answers.
    """
    asked = FORMATS[form][item.task](item)
    if train and not asked.trained:
        return
    several = train and len(asked.targets) > 1
    for i, target in enumerate(asked.targets if train else (SEPARATOR.join(asked.targets),)):
        yield Example(
            id=f"{item.id}-{i}" if several else item.id,
            task=item.task,
            prompt=asked.prompt,
            target=target,
            choices=asked.choices,
            group=item.group,
        )


def letter(i: int) -> str:
    """A, B, ..., Z, AA, AB, ... for i = 0, 1, ..., as the columns of a spreadsheet."""
    return (letter(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


def _template(text: str, *choices: str) -> Ask:
    """The texts of an item in a template, with one choice for each label of the task."""

    def ask(item: Item) -> Asked:
        target = choices[LABELS[item.task].index(item.label)]
        return Asked(prompt=text.format_map(item.texts), choices=choices, targets=(target,))

    return ask


_YES_NO = "\nA. Yes\nB. No\nAnswer:"
_NO_IS_FIRST = ("B", "A")  # the letters of False and True


def _letters_copa(item: Item) -> Asked:
    question = "What was the cause of this?" if item.texts["question"] == "cause" else "What happened as a result?"
    ask = _template(f"{{premise}}\n{question}\nA. {{choice1}}\nB. {{choice2}}\nAnswer:", "A", "B")
    return ask(item)


def _letters_record(item: Item) -> Asked:
    options = "\n".join(f"{letter(i)}. {entity}" for i, entity in enumerate(item.entities))
    return Asked(
        prompt=f"{_prose(item.texts['passage'])}\n{item.texts['query']}\nWhat is @placeholder?\n{options}\nAnswer:",
        choices=item.entities,
        targets=tuple(letter(item.entities.index(gold)) for gold in item.golds),
    )


def _t5_record(item: Item) -> Asked:
    names, passage = ", ".join(item.entities), _prose(item.texts["passage"])
    return Asked(
        prompt=f"record query: {item.texts['query']} entities: {names} passage: {passage}",
        choices=item.entities,
        targets=item.golds,
    )


def _t5_wsc(item: Item) -> Asked:
    refers = item.label == "True"
    noun = item.texts["noun"]
    return Asked(
        prompt=f"wsc: {item.texts['text']}",
        choices=(noun,),
        targets=(noun if refers else ANOTHER_NOUN,),
        trained=refers,
    )


def _lm_eval_copa(item: Item) -> Asked:
    texts = item.texts
    connector = "because" if texts["question"] == "cause" else "therefore"
    choices = tuple(texts[name][:1].lower() + texts[name][1:] for name in LABELS["copa"])
    premise = texts["premise"].removesuffix(".")
    target = choices[LABELS["copa"].index(item.label)]
    return Asked(prompt=f"{premise} {connector}", choices=choices, targets=(target,))


def _lm_eval_record(item: Item) -> Asked:
    text, *highlights = (part.strip() for part in item.texts["passage"].split(_HIGHLIGHT))
    points = "\n".join(f"  - {point}" for point in (*highlights, item.texts["query"]))
    return Asked(
        prompt=f"{text}\n\n{points}\nQuestion: Which name is @placeholder?\nAnswer:",
        choices=item.entities,
        targets=item.golds,
    )


def _prose(passage: str) -> str:
    """A passage of ReCoRD with its highlights as sentences of the text."""
    return _AFTER_SENTENCE.sub(" ", passage).replace(f"\n{_HIGHLIGHT}\n", ". ")


FORMATS: Final[Mapping[str, Mapping[str, Ask]]] = {
    "letters": {
        "boolq": _template("{passage}\nQuestion: {question}" + _YES_NO, *_NO_IS_FIRST),
        "cb": _template(
            "{premise}\n{hypothesis}\nIs the sentence below entailed by the sentence above?\n"
            "A. Yes\nB. No\nC. Maybe\nAnswer:",
            *"ABC",
        ),
        "copa": _letters_copa,
        "multirc": _template("{passage}\nQuestion: {question}\nAnswer: {answer}\nIs it true?" + _YES_NO, *_NO_IS_FIRST),
        "record": _letters_record,
        "rte": _template(
            "{premise}\n{hypothesis}\nIs the sentence below entailed by the sentence above?" + _YES_NO, "A", "B"
        ),
        "wic": _template(
            "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nAre '{word}' in the above two sentences the same?"
            + _YES_NO,
            *_NO_IS_FIRST,
        ),
        "wsc": _template("{text}\nDoes *{pronoun}* refer to {noun}?" + _YES_NO, *_NO_IS_FIRST),
    },
    "t5": {
        "boolq": _template("boolq passage: {passage} question: {question}", "False", "True"),
        "cb": _template("cb hypothesis: {hypothesis} premise: {premise}", *LABELS["cb"]),
        "copa": _template(
            "copa choice1: {choice1} choice2: {choice2} premise: {premise} question: {question}", *LABELS["copa"]
        ),
        "multirc": _template("multirc question: {question} answer: {answer} paragraph: {passage}", "False", "True"),
        "record": _t5_record,
        "rte": _template("rte hypothesis: {hypothesis} premise: {premise}", *LABELS["rte"]),
        "wic": _template("wic sentence1: {sentence1} sentence2: {sentence2} word: {word}", "False", "True"),
        "wsc": _t5_wsc,
    },
    "lm-eval": {
        "boolq": _template("{passage}\nQuestion: {question}?\nAnswer:", "no", "yes"),
        "cb": _template(
            "{premise}\nQuestion: {hypothesis}. True, False, or Neither?\nAnswer:", "True", "False", "Neither"
        ),
        "copa": _lm_eval_copa,
        "multirc": _template("{passage}\nQuestion: {question}\nAnswer: {answer}\nIs the answer correct?", "no", "yes"),
        "record": _lm_eval_record,
        "rte": _template("{premise}\nQuestion: {hypothesis} True or False?\nAnswer:", "True", "False"),
        "wic": _template(
            "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nQuestion: Is the word '{word}' used in the same way in "
            "the two sentences above?\nAnswer:",
            "no",
            "yes",
        ),
        "wsc": _template(
            'Passage: {text}\nQuestion: In the passage above, does the pronoun "*{pronoun}*" refer to "*{noun}*"?\n'
            "Answer:",
            "no",
            "yes",
        ),
    },
}
"""The formats by name: how an item of each task is asked."""
