"""The metrics that a suite's file can name, each from additive statistics of texts that a parser has accepted."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from harness.task import NOT_PARSED, Answer, Floats, Statistics
from tasks.common.bleu import bleu_statistics
from tasks.common.chrf import chrf_statistics
from tasks.common.metrics import (
    joined,
    label_statistics,
    mean_statistics,
    rouge_statistics,
    set_statistics,
    where_golds_parse,
)
from tasks.common.tokens import characters

_NUMBER: Final = re.compile(r"(?:(?<!\w)[-+])?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")


class Family(StrEnum):
    """What an answer is, which decides how a prediction is parsed and is the default kind of a task."""

    LABEL = "label"
    TEXT = "text"
    SET = "set"
    NUMBER = "number"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keys of a task that metrics use. separator: between the items of a set. tolerance: in the answer's unit."""

    separator: str = ","
    tolerance: float = 0.0


Texts = Sequence[str]
Compute = Callable[[Texts, Sequence[str | None], Settings], Statistics]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric. value: its name in what ``compute`` returns, which several metrics may share."""

    family: Family
    compute: Compute
    value: str


def statistics_of(
    names: Sequence[str], settings: Settings
) -> Callable[[Sequence[Answer], Sequence[Answer]], Statistics]:
    """The statistics of some metrics of one task. An unparsed prediction is wrong, or scores 0, in all of them."""

    def compute(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
        return where_golds_parse(build, golds, answers)

    def build(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
        given = [None if answer is NOT_PARSED else answer for answer in answers]
        by_compute = {METRICS[name].compute: None for name in names}
        parts = [_renamed(function(golds, given, settings), function, names) for function in by_compute]
        return joined(*parts)

    return compute


def numbers_in(text: str) -> list[float]:
    """The finite numbers in a text, in order; ``1,234.5`` is one number, and ``3-5`` are 3 and 5.

    Takes time linear in the text's length.
    """
    found = (float(m.group().replace(",", "")) for m in _NUMBER.finditer(text))
    return [number for number in found if math.isfinite(number)]


def items_of(text: str, separator: str) -> frozenset[str]:
    """The different items of a list, without white space at their ends; empty items do not count."""
    return frozenset(item for item in (piece.strip() for piece in text.split(separator)) if item)


def parsed_items(answer: Answer, separator: str) -> frozenset[str]:
    """The items of a parsed list; an unparsed prediction has none."""
    return frozenset() if answer is NOT_PARSED else items_of(answer, separator)


def tokens_of(text: str) -> list[str]:
    """Lower-case words, punctuation marks and single Chinese characters."""
    return list(characters(text)) if text.strip() else []


def token_f1(gold: str, answer: str) -> float:
    """F1 of two texts as multisets of tokens (Rajpurkar et al. 2016, with ``tokens_of`` and without stop words)."""
    reference, predicted = tokens_of(gold), tokens_of(answer)
    common = (Counter(reference) & Counter(predicted)).total()
    return 2 * common / (len(reference) + len(predicted)) if common else 0.0


def is_near(gold: str, answer: str, tolerance: float) -> bool:
    """Whether the last numbers of two texts differ by at most the tolerance; False if one has no number."""
    one, two = numbers_in(gold), numbers_in(answer)
    return bool(one) and bool(two) and abs(one[-1] - two[-1]) <= tolerance


def _renamed(statistics: Statistics, compute: Compute, names: Sequence[str]) -> Statistics:
    """Only the metrics that the file names, under the names that it uses."""
    wanted = {name: METRICS[name].value for name in names if METRICS[name].compute is compute}

    def values(sums: Floats) -> Mapping[str, Floats]:
        found = statistics.values(sums)
        return {name: found[value] for name, value in wanted.items()}

    return Statistics(per_unit=statistics.per_unit, values=values)


def _labels(golds: Texts, answers: Sequence[str | None], settings: Settings) -> Statistics:
    return label_statistics(golds, answers)


def _exact(golds: Texts, answers: Sequence[str | None], settings: Settings) -> Statistics:
    return mean_statistics({"exact_match": [float(g == a) for g, a in zip(golds, answers, strict=True)]})


def _tokens(golds: Texts, answers: Sequence[str | None], settings: Settings) -> Statistics:
    return mean_statistics({"token_f1": [token_f1(g, a or "") for g, a in zip(golds, answers, strict=True)]})


def _sets(golds: Texts, answers: Sequence[str | None], settings: Settings) -> Statistics:
    separator = settings.separator
    return set_statistics(
        [items_of(gold, separator) for gold in golds], [items_of(answer or "", separator) for answer in answers]
    )


def _rouge(golds: Texts, answers: Sequence[str | None], settings: Settings) -> Statistics:
    return rouge_statistics([[tokens_of(gold)] for gold in golds], [[tokens_of(answer or "")] for answer in answers])


def _bleu(golds: Texts, answers: Sequence[str | None], settings: Settings) -> Statistics:
    return bleu_statistics([tokens_of(gold) for gold in golds], [tokens_of(answer or "") for answer in answers])


def _chrf(golds: Texts, answers: Sequence[str | None], settings: Settings) -> Statistics:
    return chrf_statistics(golds, [answer or "" for answer in answers])


def _numbers(golds: Texts, answers: Sequence[str | None], settings: Settings) -> Statistics:
    pairs = zip(golds, answers, strict=True)
    return mean_statistics({"numeric_match": [float(is_near(g, a or "", settings.tolerance)) for g, a in pairs]})


METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        "accuracy": Metric(family=Family.LABEL, compute=_labels, value="accuracy"),
        "macro_f1": Metric(family=Family.LABEL, compute=_labels, value="macro_f1"),
        "micro_f1": Metric(family=Family.LABEL, compute=_labels, value="micro_f1"),
        "weighted_f1": Metric(family=Family.LABEL, compute=_labels, value="weighted_f1"),
        "exact_match": Metric(family=Family.TEXT, compute=_exact, value="exact_match"),
        "token_f1": Metric(family=Family.TEXT, compute=_tokens, value="token_f1"),
        "rouge_l": Metric(family=Family.TEXT, compute=_rouge, value="rouge_l"),
        "bleu": Metric(family=Family.TEXT, compute=_bleu, value="bleu_4"),
        "chrf": Metric(family=Family.TEXT, compute=_chrf, value="chrf"),
        "set_f1": Metric(family=Family.SET, compute=_sets, value="f1"),
        "set_precision": Metric(family=Family.SET, compute=_sets, value="precision"),
        "set_recall": Metric(family=Family.SET, compute=_sets, value="recall"),
        "numeric_match": Metric(family=Family.NUMBER, compute=_numbers, value="numeric_match"),
    }
)
"""Every metric by name."""
