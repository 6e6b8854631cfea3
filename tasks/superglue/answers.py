"""The parsers of answers. All accept any text, use its first line or entry only, and are linear in its length."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from harness.task import NOT_PARSED, Example, NotParsed
from tasks.superglue.items import LABELS, SEPARATOR
from tasks.superglue.prompts import ANOTHER_NOUN, letter

_EDGES: Final = " \t.,;:!?\"'`*()[]"
_LETTERED = re.compile(r"\(?([A-Za-z]{1,2})[.):](?=\s|$)")  # an option that begins with its letter: "A. Yes"
_BETWEEN = re.compile(rf"[\n{re.escape(SEPARATOR.strip())}]")
# Words that T5's rule for WSC ignores: articles, quantifiers, possessives and demonstratives.
_DETERMINERS: Final = frozenset(
    {"a", "an", "the", "few", "each", "every", "many", "much", "some", "which", "whose"}
    | {"my", "our", "your", "his", "her", "their", "this", "that", "these", "those"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What MultiRC's answer is said to be. question: with its passage, ``PASSAGE-QUESTION``. value: True or False."""

    passage: str
    question: str
    value: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Entities:
    """Entities of a query of ReCoRD: of a target all correct ones; of a prediction the first counts.

    passage: the number of the passage.
    """

    passage: str
    names: tuple[str, ...]


def parse_label(text: str, example: Example) -> str | NotParsed:
    """The label of a task whose choice the first line is: equal without case and without punctuation at the ends.

    A letter may be followed by its option: ``A. Yes`` is A.
    """
    line = _first_line(text)
    labels, choices = LABELS[example.task], example.choices or ()
    for given in (line, *_LETTERED.findall(line)[:1]) if _LETTERED.match(line) else (line,):
        key = _key(given)
        for label, choice in zip(labels, choices, strict=False):
            if key == _key(choice):
                return label
    return NOT_PARSED


def parse_verdict(text: str, example: Example) -> Verdict | NotParsed:
    """The label of an answer of MultiRC, with its question and its passage from the example's id."""
    value = parse_label(text, example)
    if isinstance(value, NotParsed):
        return NOT_PARSED
    question = example.group or example.id
    return Verdict(passage=question.partition("-")[0], question=question, value=value)


def parse_lettered_entity(text: str, example: Example) -> Entities | NotParsed:
    """The entities of a list of letters; NOT_PARSED if the first entry is not the letter of an entity."""
    by_letter = {letter(i): entity for i, entity in enumerate(example.choices or ())}
    entries = [(entry, _LETTERED.match(entry)) for entry in _entries(text)]
    keys = [(found[1] if found else entry.strip(_EDGES)).upper() for entry, found in entries]
    names = tuple(by_letter[key] for key in keys if key in by_letter)
    if not keys or keys[0] not in by_letter:
        return NOT_PARSED
    return Entities(passage=_passage(example), names=names)


def parse_entity(text: str, example: Example) -> Entities | NotParsed:
    """The entities that a text lists; NOT_PARSED if it is blank."""
    names = tuple(_entries(text))
    return Entities(passage=_passage(example), names=names) if names else NOT_PARSED


def parse_noun(text: str, example: Example) -> str | NotParsed:
    """Whether the noun that a text names is the one that the example asks about: "True" or "False".

    T5's rule: without case and determiners, all words of one are words of the other, and both or neither have an
    apostrophe. The reference of an example whose pronoun does not refer to the noun is ``another noun``.
    """
    line = _first_line(text)
    if not line.strip(_EDGES):
        return NOT_PARSED
    if line == ANOTHER_NOUN:
        return "False"
    noun = (example.choices or ("",))[0]
    given, asked = _content_words(line), _content_words(noun)
    same = bool(given) and bool(asked) and (given <= asked or asked <= given)
    return str(same and ("'" in line) == ("'" in noun))


def _content_words(text: str) -> set[str]:
    words = {word.strip(_EDGES) for word in text.casefold().split()}
    return words - _DETERMINERS - {""}


def _passage(example: Example) -> str:
    parts = example.id.split("-")
    return parts[1] if len(parts) > 2 else example.id


def _key(text: str) -> str:
    return " ".join(text.casefold().strip(_EDGES).split())


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in _BETWEEN.split(text) if entry.strip()]


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()
