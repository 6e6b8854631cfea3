"""The parser of a task: which part of a text is the answer, and whether it is one."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

from harness.task import NOT_PARSED, Example, NotParsed, Protocol, Task
from tasks.table.keys import TaskKeys
from tasks.table.metrics import METRICS, Family, Settings, items_of, numbers_in, parsed_items, statistics_of

VERSION = 1
"""Raise it when equal predictions would be scored differently: it is the version of every task."""


@dataclass(frozen=True, kw_only=True)
class AnswerParser:
    """Reads an answer as the headline metric needs it.

    extract: a regular expression; the answer is its last match, or the match's only group. A text that equals the
        example's target is its own answer if it has no match, since targets rarely repeat a phrase such as "Answer:".
    """

    family: Family
    separator: str = ","
    ignore_case: bool = False
    extract: str | None = None
    choices: tuple[str, ...] = ()

    def __call__(self, text: str, example: Example) -> str | NotParsed:
        """The answer as text, without white space at its ends; NOT_PARSED if it is blank or not of the family."""
        answer = self._extracted(text, example)
        if self.ignore_case:
            answer = answer.casefold()
        if not answer:
            return NOT_PARSED
        if self.family is Family.LABEL:
            return self._label(answer, example)
        if self.family is Family.NUMBER:
            return answer if numbers_in(answer) else NOT_PARSED
        if self.family is Family.SET:
            return answer if items_of(answer, self.separator) else NOT_PARSED
        return answer

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        return None if self.extract is None else re.compile(self.extract)

    def _extracted(self, text: str, example: Example) -> str:
        if self._pattern is None:
            return text.strip()
        last = deque(self._pattern.finditer(text), maxlen=1)
        if not last:
            return text.strip() if text == example.target else ""
        return (last[0].group(self._pattern.groups) or "").strip()

    def _label(self, answer: str, example: Example) -> str | NotParsed:
        choices = self.choices or example.choices
        if not choices:
            return answer
        return _by_form(choices, self.ignore_case).get(answer, NOT_PARSED)


@lru_cache(maxsize=1024)
def _by_form(choices: tuple[str, ...], ignore_case: bool) -> Mapping[str, str]:
    """The choices by the form in which answers are compared."""
    return {(choice.casefold() if ignore_case else choice).strip(): choice for choice in choices}


def make_task(name: str, keys: TaskKeys) -> Task:
    """The task of a table of keys; its kind is by default the family of the headline metric."""
    family = METRICS[keys.shown].family
    parse = AnswerParser(
        family=family,
        separator=keys.separator,
        ignore_case=keys.ignore_case,
        extract=keys.extract,
        choices=keys.choices or (),
    )
    settings = Settings(separator=keys.separator, tolerance=keys.tolerance)
    protocol = Protocol(
        parse=parse,
        statistics=statistics_of(keys.metrics, settings),
        headline=keys.shown,
        items=partial(parsed_items, separator=keys.separator) if family is Family.SET else None,
    )
    return Task(
        name=name,
        version=VERSION,
        kind=keys.kind or family.value,
        one_label=keys.shown in ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "exact_match"),
        protocols={"official": protocol},
    )
