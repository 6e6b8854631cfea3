"""Parsing predictions and computing their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.task import NOT_PARSED, Answer, Example, Protocol, Statistics, Task


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Predictions of one task under one protocol, parsed: what statistics and counts are made from."""

    golds: Sequence[Answer]
    answers: Sequence[Answer]
    statistics: Statistics
    n_unparsed: int
    n_invented: int | None = field(default=None)


def judge(task: Task, protocol: str, examples: Sequence[Example], texts: Sequence[str]) -> Judged:
    """Parse golds and predictions of one task and compute their statistics under one protocol.

    Args: examples and texts of equal length n, in the same order.
    """
    rule = task.protocols[protocol]
    golds = [rule.parse(e.target, e) for e in examples]
    answers = [rule.parse(t, e) for t, e in zip(texts, examples, strict=True)]
    invented = None
    if task.invented is not None:
        invented = sum(task.invented(a, e) for a, e in zip(answers, examples, strict=True))
    return Judged(
        golds=golds,
        answers=answers,
        statistics=rule.statistics(golds, answers),
        n_unparsed=sum(a is NOT_PARSED for a in answers),
        n_invented=invented,
    )


def _judge(task: Task, examples: Sequence[Example], texts: Sequence[str]) -> dict[str, Judged]:
    """``harness.task.judge`` under every protocol; protocols with the same parser share what it made."""
    parsed: dict[int, tuple[list[Answer], list[Answer], int | None]] = {}
    found = {}
    for name, rule in task.protocols.items():
        if id(rule.parse) not in parsed:
            parsed[id(rule.parse)] = _parse(task, rule, examples, texts)
        golds, answers, n_invented = parsed[id(rule.parse)]
        found[name] = Judged(
            golds=golds,
            answers=answers,
            statistics=rule.statistics(golds, answers),
            n_unparsed=sum(a is NOT_PARSED for a in answers),
            n_invented=n_invented,
        )
    return found


def _parse(
    task: Task, rule: Protocol, examples: Sequence[Example], texts: Sequence[str]
) -> tuple[list[Answer], list[Answer], int | None]:
    golds = [rule.parse(e.target, e) for e in examples]
    answers = [rule.parse(text, e) for text, e in zip(texts, examples, strict=True)]
    if task.invented is None:
        return golds, answers, None
    return golds, answers, sum(bool(task.invented(a, e)) for a, e in zip(answers, examples, strict=True))
