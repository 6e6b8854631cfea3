"""The seven tasks. The kind of a task is its family, so that ``--clusters kind`` groups tasks that are related."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from harness.task import NOT_PARSED, Answer, Example, Protocol, Statistics, Task
from tasks.common.metrics import label_statistics

FAMILIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "pick-first": "contradicting",
        "pick-last": "contradicting",
        "class-stated": "related",
        "class-asked": "related",
        "class-rare": "related",
        "grade-table": "grades",
        "say-twice": "saying",
    }
)


def answer_of(text: str, example: Example) -> Answer:
    """The whole text without white space at its ends; not parsed if it is empty or not among the example's choices."""
    answer = text.strip()
    return answer if answer and (example.choices is None or answer in example.choices) else NOT_PARSED


def accuracy(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """The share of right answers; an unparsed one is wrong."""
    return label_statistics(golds, [None if answer is NOT_PARSED else answer for answer in answers])


TASKS: Final[Mapping[str, Task]] = MappingProxyType(
    {
        name: Task(
            name=name,
            version=1,
            kind=family,
            one_label=True,
            protocols={"official": Protocol(parse=answer_of, statistics=accuracy, headline="accuracy")},
        )
        for name, family in FAMILIES.items()
    }
)
