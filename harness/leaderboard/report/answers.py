"""Predictions judged one by one: the score of each example alone, and the parsed answer in a form that can be printed.

What is found, missing and spurious is decided by the task: the sets are those that its metric compares
(``Protocol.items``). A text that several runs have generated for one example is judged once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from harness.scoring.judge import JudgeCache, Judged, judge
from harness.task import NOT_PARSED, Answer, Example, Task

_CHUNK: Final = 400  # Texts are judged in parts of this size: the statistics of labels have a column for each label.

Form = Any
"""A parsed answer as a JSON value: None if it is unparsed, {"found", "missing", "spurious": [item]} with numbers of an
``ItemTable`` where the task compares sets, a text, or texts by heading."""


@dataclass(kw_only=True)
class ItemTable:
    """The items of a task's answers, each stored once: [name, text, name, text, …] with the names of its fields."""

    items: list[list[str]] = field(default_factory=list)
    numbers: dict[tuple[str, ...], int] = field(default_factory=dict)

    def number(self, item: Hashable) -> int:
        """The number of an item, which is added if it is new."""
        parts = tuple(_parts(item))
        if parts not in self.numbers:
            self.numbers[parts] = len(self.items)
            self.items.append(list(parts))
        return self.numbers[parts]


@dataclass(frozen=True, kw_only=True)
class JudgedText:
    """One text for one example under one protocol.

    score: the headline of this example alone, between 0 and 1; None if the metric has no value for it.
    correct: whether the answer equals the gold answer, as a set where the task compares sets.
    """

    score: float | None
    correct: bool
    form: Form


def judge_texts(
    task: Task, examples: Sequence[Example], texts: Sequence[str], table: ItemTable
) -> dict[str, list[JudgedText]]:
    """By protocol, one result for each pair of an example and a text. An example may occur several times."""
    found: dict[str, list[JudgedText]] = {name: [] for name in task.protocols}
    for start in range(0, len(texts), _CHUNK):
        part = slice(start, start + _CHUNK)
        cache = JudgeCache()
        for name in task.protocols:
            judged = judge(task, name, examples[part], texts[part], cache)
            found[name] += _each(task, name, judged, table)
    return found


def gold_forms(task: Task, examples: Sequence[Example], table: ItemTable) -> dict[str, list[Form]]:
    """By protocol, the gold answers; their items are all found."""
    targets = judge_texts(task, examples, [e.target for e in examples], table)
    return {name: [judged.form for judged in of_protocol] for name, of_protocol in targets.items()}


def _each(task: Task, protocol: str, judged: Judged, table: ItemTable) -> list[JudgedText]:
    rule, correct = task.protocols[protocol], judged.correct
    found = []
    for i, (gold, answer, score) in enumerate(
        zip(judged.golds, judged.answers, _scores(task, protocol, judged), strict=True)
    ):
        right = bool(correct[i])
        if rule.items is None:
            form = _plain(answer)
        else:
            wanted, given = rule.items(gold), rule.items(answer)
            right = answer is not NOT_PARSED and wanted == given
            form = None if answer is NOT_PARSED else _sorted(wanted, given, table)
        found.append(JudgedText(score=score, correct=right, form=form))
    return found


def _scores(task: Task, protocol: str, judged: Judged) -> list[float | None]:
    """The headline of each example alone. Where units have several examples, each is scored as a unit of its own."""
    rule = task.protocols[protocol]
    if len(judged.statistics.per_unit) == len(judged.answers):
        return [float(x) for x in judged.statistics.values(judged.statistics.per_unit)[rule.headline]]
    scores: list[float | None] = []
    for gold, answer in zip(judged.golds, judged.answers, strict=True):
        alone = rule.statistics([gold], [answer])
        units = alone.per_unit
        scores.append(float(alone.values(units.sum(axis=0))[rule.headline]) if len(units) else None)
    return scores


def _sorted(wanted: frozenset[Any], given: frozenset[Any], table: ItemTable) -> dict[str, list[int]]:
    """The items by what they are, in the order of their texts; groups without items are left out."""
    groups = {"found": wanted & given, "missing": wanted - given, "spurious": given - wanted}
    return {name: [table.number(item) for item in sorted(items, key=_parts)] for name, items in groups.items() if items}


def _plain(answer: Answer) -> Form:
    if answer is NOT_PARSED:
        return None
    if isinstance(answer, Mapping):
        return {"sections": {str(name): str(text) for name, text in answer.items()}}
    if isinstance(answer, str):
        return answer
    parts = _parts(answer)
    return ", ".join(text for text in parts[1::2] if text)


def _parts(item: Any) -> list[str]:
    """[name, text, …] of the fields of an item; names are "" where it has none."""
    if dataclasses.is_dataclass(item):
        names = [f.name for f in dataclasses.fields(item)]
        return [part for name in names for part in (name, _text(getattr(item, name)))]
    if isinstance(item, tuple | list):
        return [part for value in item for part in ("", _text(value))]
    return ["", _text(item)]


def _text(value: Any) -> str:
    return "，".join(map(_text, value)) if isinstance(value, tuple | list) else str(value)
