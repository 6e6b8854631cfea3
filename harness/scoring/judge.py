"""Judging predictions: each is parsed into an answer, and the answers of a task become statistics.

This is the only place where predictions are parsed for scoring: runs, files of predictions, the score on dev during
training and the tasks for lm-eval all use ``judge``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from harness.task import NOT_PARSED, Answer, Example, Protocol, Statistics, Task

Parse = Callable[[str, Example], Answer]
Compute = Callable[[Sequence[Answer], Sequence[Answer]], Statistics]


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """The answers of one task's references and predictions, by one parser.

    n_unparsed: predictions that do not follow the task's format. n_invented: answers with a label that the example
    does not offer; None if the task has no closed set of labels.
    """

    golds: Sequence[Answer]
    answers: Sequence[Answer]
    n_unparsed: int
    n_invented: int | None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One task under one protocol: the parsed answers and their statistics."""

    parsed: Parsed
    statistics: Statistics

    @property
    def golds(self) -> Sequence[Answer]:
        """The answers of the references, (n,)."""
        return self.parsed.golds

    @property
    def answers(self) -> Sequence[Answer]:
        """The answers of the predictions, (n,)."""
        return self.parsed.answers

    @property
    def n_unparsed(self) -> int:
        """The number of predictions that do not follow the task's format."""
        return self.parsed.n_unparsed

    @property
    def n_invented(self) -> int | None:
        """The number of answers with a label that the example does not offer; None without a closed set of labels."""
        return self.parsed.n_invented

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which predictions were parsed and equal the reference, (n,)."""
        pairs = zip(self.golds, self.answers, strict=True)
        return np.array([a is not NOT_PARSED and bool(g == a) for g, a in pairs], dtype=np.bool_)


@dataclass(frozen=True, kw_only=True)
class JudgeCache:
    """Results that the protocols of one task share for one set of predictions.

    Protocols with the same parser parse once, and protocols that also have the same statistics compute them once. The
    keys are the functions themselves, so a cache must not outlive the task whose protocols it was used with.
    """

    parsed: dict[Parse, Parsed] = field(default_factory=dict)
    statistics: dict[tuple[Parse, Compute], Statistics] = field(default_factory=dict)


def judge(
    task: Task, protocol: str, examples: Sequence[Example], predictions: Sequence[str], cache: JudgeCache | None = None
) -> Judged:
    """Parse the references and the predictions of one task and compute their statistics under one protocol.

    Args:
        examples, predictions: of equal length n, in the same order.
        cache: shared by the calls for several protocols of this task on the same examples and predictions.
    """
    cache = JudgeCache() if cache is None else cache
    rule = task.protocols[protocol]
    if rule.parse not in cache.parsed:
        cache.parsed[rule.parse] = _parse(task, rule, examples, predictions)
    parsed = cache.parsed[rule.parse]
    key = (rule.parse, rule.statistics)
    if key not in cache.statistics:
        cache.statistics[key] = rule.statistics(parsed.golds, parsed.answers)
    return Judged(parsed=parsed, statistics=cache.statistics[key])


def _parse(task: Task, rule: Protocol, examples: Sequence[Example], predictions: Sequence[str]) -> Parsed:
    golds = [rule.parse(e.target, e) for e in examples]
    answers = [rule.parse(text, e) for text, e in zip(predictions, examples, strict=True)]
    n_invented = None
    if task.invented is not None:
        n_invented = sum(bool(task.invented(a, e)) for a, e in zip(answers, examples, strict=True))
    n_unparsed = sum(a is NOT_PARSED for a in answers)
    return Parsed(golds=golds, answers=answers, n_unparsed=n_unparsed, n_invented=n_invented)
