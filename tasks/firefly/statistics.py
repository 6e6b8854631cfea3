"""The statistics of Firefly's tasks: labels, sets, short answers and free text.

If a target does not parse, no prediction can be correct. The statistics of such an example are zero, so that it does
not affect any metric; ``harness validate`` lists such examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from harness.task import NOT_PARSED, Answer, Statistics
from tasks.common.bleu import bleu_statistics
from tasks.common.metrics import (
    joined,
    mean_statistics,
    rouge_statistics,
    set_statistics,
    where_golds_parse,
)


def sets(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """Micro ``f1``, ``precision``, ``recall`` over sets; an unparsed prediction is the empty set."""
    return where_golds_parse(lambda gold, answer: set_statistics(gold, [items_of(a) for a in answer]), golds, answers)


def items_of(answer: Answer) -> frozenset[Any]:
    """The items of a parsed set; an unparsed prediction has none."""
    return frozenset() if answer is NOT_PARSED else answer


def short_answers(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """Mean ``exact_match`` and ``char_f1``; an unparsed prediction scores 0."""

    def build(gold: Sequence[Answer], answer: Sequence[Answer]) -> Statistics:
        pairs = list(zip(gold, ("" if a is NOT_PARSED else a for a in answer), strict=True))
        return mean_statistics(
            {"exact_match": [float(g == a) for g, a in pairs], "char_f1": [char_f1(g, a) for g, a in pairs]}
        )

    return where_golds_parse(build, golds, answers)


def free_text(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """Mean ``rouge_l``, ``rouge_1`` and ``rouge_2`` and corpus ``bleu_4``, all over characters."""

    def build(gold: Sequence[Answer], answer: Sequence[Answer]) -> Statistics:
        references = [list(g) for g in gold]
        predictions = [[] if a is NOT_PARSED else list(a) for a in answer]
        rouge = rouge_statistics([[r] for r in references], [[p] for p in predictions])
        return joined(rouge, bleu_statistics(references, predictions))

    return where_golds_parse(build, golds, answers)


def char_f1(gold: str, answer: str) -> float:
    """F1 of two texts as multisets of characters (the token F1 of SQuAD, Rajpurkar et al. 2016, on characters)."""
    common = (Counter(gold) & Counter(answer)).total()
    return 2 * common / (len(gold) + len(answer)) if common else 0.0
