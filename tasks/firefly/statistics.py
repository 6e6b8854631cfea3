"""What the kinds are scored by: per-example statistics of labels, sets, short answers and texts.

An example whose gold text does not parse could not be answered rightly by anyone: its row is zero, so that it counts
nowhere; `harness validate` names such examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from harness.task import NOT_PARSED, Answer, Floats, Statistics
from tasks.common.bleu import bleu_statistics
from tasks.common.metrics import label_statistics, mean_statistics, rouge_statistics, set_statistics

Build = Callable[[Sequence[Answer], Sequence[Answer]], Statistics]


def labels(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """``macro_f1``, ``accuracy`` and the others of ``label_statistics``; an answer that did not parse is wrong."""
    return _where_golds_parse(
        lambda gold, answer: label_statistics(gold, [None if a is NOT_PARSED else a for a in answer]), golds, answers
    )


def sets(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """Micro ``f1``, ``precision``, ``recall`` over sets; an answer that did not parse is the empty set."""
    return _where_golds_parse(
        lambda gold, answer: set_statistics(gold, [frozenset() if a is NOT_PARSED else a for a in answer]),
        golds,
        answers,
    )


def spans(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """Mean ``exact_match`` and ``char_f1`` (``char_f1`` below); an answer that did not parse scores 0."""

    def build(gold: Sequence[Answer], answer: Sequence[Answer]) -> Statistics:
        pairs = list(zip(gold, ("" if a is NOT_PARSED else a for a in answer), strict=True))
        return mean_statistics(
            {"exact_match": [float(g == a) for g, a in pairs], "char_f1": [char_f1(g, a) for g, a in pairs]}
        )

    return _where_golds_parse(build, golds, answers)


def texts(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """Mean ROUGE-L (``rouge_l`` and its relatives) and corpus ``bleu_4``, both over characters."""

    def build(gold: Sequence[Answer], answer: Sequence[Answer]) -> Statistics:
        expected = [list(g) for g in gold]
        written = [[] if a is NOT_PARSED else list(a) for a in answer]
        rouge = rouge_statistics([[g] for g in expected], [[w] for w in written])
        return _beside(rouge, bleu_statistics(expected, written))

    return _where_golds_parse(build, golds, answers)


def char_f1(gold: str, answer: str) -> float:
    """F1 of two texts as multisets of characters (SQuAD's token F1, Rajpurkar et al. 2016, with characters)."""
    common = (Counter(gold) & Counter(answer)).total()
    return 2 * common / (len(gold) + len(answer)) if common else 0.0


def _where_golds_parse(build: Build, golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    kept = [i for i, gold in enumerate(golds) if gold is not NOT_PARSED]
    inner = build([golds[i] for i in kept], [answers[i] for i in kept])
    rows = np.zeros((len(golds), inner.rows.shape[1]))
    rows[kept] = inner.rows
    return Statistics(rows=rows, values=inner.values)


def _beside(left: Statistics, right: Statistics) -> Statistics:
    width = left.rows.shape[1]

    def values(sums: Floats) -> Mapping[str, Floats]:
        return {**left.values(sums[..., :width]), **right.values(sums[..., width:])}

    return Statistics(rows=np.concatenate([left.rows, right.rows], axis=1), values=values)
