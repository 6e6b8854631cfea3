"""Common metrics: functions that compute a ``Statistics`` from gold and predicted answers.

``Statistics.values`` maps column sums of shape (..., k) to metrics of shape (...). A ratio whose denominator is zero is
0, as in scikit-learn with ``zero_division=0``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from harness.task import NOT_PARSED, Answer, Floats, Statistics
from tasks.common.rouge import Tokens, rouge


def set_statistics(golds: Sequence[AbstractSet[Hashable]], answers: Sequence[AbstractSet[Hashable]]) -> Statistics:
    """Strict micro-averaged precision, recall and F1 over sets of items. Columns: hits, predicted, gold.

    Args: one set of gold items and one of predicted items per example; pass the empty set for an unparsed prediction.
    """
    per_unit = np.array(
        [(len(gold & answer), len(answer), len(gold)) for gold, answer in zip(golds, answers, strict=True)],
        dtype=np.float64,
    ).reshape(len(golds), 3)

    def values(sums: Floats) -> Mapping[str, Floats]:
        hits, predicted, gold = sums[..., 0], sums[..., 1], sums[..., 2]
        return {
            "precision": ratio(hits, predicted),
            "recall": ratio(hits, gold),
            "f1": ratio(2 * hits, predicted + gold),
        }

    return Statistics(per_unit=per_unit, values=values)


def label_statistics(golds: Sequence[str], answers: Sequence[str | None]) -> Statistics:
    """Accuracy and macro, weighted and micro F1 of one label per example, as in scikit-learn's classification report.

    The macro mean of a (re)sample is over the labels that occur in it, as gold or as prediction. A label that is
    predicted but never gold has F1 0 and counts in that mean.
    Columns, for c gold labels and q labels that are predicted but never gold (k = 3c + q + 2): hits, predictions and
    golds of each gold label; predictions of each other label; correct answers; examples.

    Args:
        answers: predicted labels; None for an answer that is wrong without being a prediction of any label.
    """
    classes = {label: i for i, label in enumerate(sorted(set(golds)))}
    never_gold = {label: i for i, label in enumerate(sorted({a for a in answers if a is not None} - set(classes)))}
    c, q = len(classes), len(never_gold)
    per_unit = np.zeros((len(golds), 3 * c + q + 2))
    for row, gold, answer in zip(per_unit, golds, answers, strict=True):
        row[2 * c + classes[gold]] = 1
        if answer in never_gold:
            row[3 * c + never_gold[answer]] = 1
        elif answer is not None:
            row[c + classes[answer]] = 1
        if answer == gold:
            row[classes[gold]] = row[-2] = 1
        row[-1] = 1

    def values(sums: Floats) -> Mapping[str, Floats]:
        hits, predicted, gold = sums[..., :c], sums[..., c : 2 * c], sums[..., 2 * c : 3 * c]
        present = ((predicted + gold) > 0).sum(-1) + (sums[..., 3 * c : 3 * c + q] > 0).sum(-1)
        accuracy = ratio(sums[..., -2], sums[..., -1])
        by_class = {
            "precision": ratio(hits, predicted),
            "recall": ratio(hits, gold),
            "f1": ratio(2 * hits, predicted + gold),
        }
        means = {"accuracy": accuracy, "micro_f1": accuracy}
        means |= {f"macro_{name}": ratio(value.sum(-1), present) for name, value in by_class.items()}
        means |= {f"weighted_{n}": ratio((value * gold).sum(-1), gold.sum(-1)) for n, value in by_class.items()}
        return means

    return Statistics(per_unit=per_unit, values=values)


def parsed_label_statistics(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """Those of ``label_statistics`` for parsed answers: an unparsed prediction is wrong, and an unparsed target is left
    out.
    """
    return where_golds_parse(
        lambda gold, answer: label_statistics(gold, [None if a is NOT_PARSED else a for a in answer]), golds, answers
    )


def mean_statistics(totals: Mapping[str, Sequence[float]], counts: Sequence[float] | None = None) -> Statistics:
    """Means of numbers per item, where an example may have several items or none.

    Args:
        totals: for each metric, its sum over the items of each example.
        counts: the number of items of each example; 1 by default.
    """
    names = list(totals)
    n = len(next(iter(totals.values())))
    weights = np.ones(n) if counts is None else np.asarray(counts, dtype=np.float64)
    per_unit = np.column_stack([*(np.asarray(totals[name], dtype=np.float64) for name in names), weights])

    def values(sums: Floats) -> Mapping[str, Floats]:
        return {name: ratio(sums[..., i], sums[..., -1]) for i, name in enumerate(names)}

    return Statistics(per_unit=per_unit, values=values)


def rouge_statistics(golds: Sequence[Sequence[Tokens]], answers: Sequence[Sequence[Tokens]]) -> Statistics:
    """Mean F of ROUGE-L, ROUGE-1 and ROUGE-2, and mean ``precision`` and ``recall`` of ROUGE-L, over pairs of texts.

    Args: for each example the token lists of its texts (one text, or one per section), as many predicted as gold. The
        mean is over all texts, so an example with more sections has more weight.
    """
    scores = [
        [rouge(gold, answer) for gold, answer in zip(texts, predicted, strict=True)]
        for texts, predicted in zip(golds, answers, strict=True)
    ]
    totals = {
        "rouge_l": [sum(s.rouge_l for s in texts) for texts in scores],
        "rouge_1": [sum(s.rouge_1 for s in texts) for texts in scores],
        "rouge_2": [sum(s.rouge_2 for s in texts) for texts in scores],
        "precision": [sum(s.precision for s in texts) for texts in scores],
        "recall": [sum(s.recall for s in texts) for texts in scores],
    }
    return mean_statistics(totals, [len(texts) for texts in scores])


def grouped(statistics: Statistics, units: Sequence[Hashable]) -> Statistics:
    """The same metrics with one row for each unit: the sum of the rows of its examples.

    Sums over all rows do not change, so neither do the metrics; resampled are the units.

    Args: units: the unit of each row, in the order of the rows; equal values are one unit. Rows of the result are in
        the order in which units first occur.
    """
    index = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    per_unit = np.zeros((len(index), statistics.per_unit.shape[1]))
    np.add.at(per_unit, [index[unit] for unit in units], statistics.per_unit)
    return Statistics(per_unit=per_unit, values=statistics.values)


def joined(*parts: Statistics) -> Statistics:
    """The columns and the metrics of all parts, of the same units."""
    ends = np.cumsum([0, *(part.per_unit.shape[1] for part in parts)])

    def values(sums: Floats) -> Mapping[str, Floats]:
        found: dict[str, Floats] = {}
        for part, start, end in zip(parts, ends, ends[1:], strict=False):
            found |= part.values(sums[..., start:end])
        return found

    return Statistics(per_unit=np.concatenate([part.per_unit for part in parts], axis=1), values=values)


def where_golds_parse(
    build: Callable[[Sequence[Answer], Sequence[Answer]], Statistics],
    golds: Sequence[Answer],
    answers: Sequence[Answer],
) -> Statistics:
    """Statistics of the examples whose targets parse, and zeros for the others, which affect no metric."""
    kept = [i for i, gold in enumerate(golds) if gold is not NOT_PARSED]
    inner = build([golds[i] for i in kept], [answers[i] for i in kept])
    per_unit = np.zeros((len(golds), inner.per_unit.shape[1]))
    per_unit[kept] = inner.per_unit
    return Statistics(per_unit=per_unit, values=inner.values)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, and 0 where the denominator is 0; shapes broadcast."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.zeros(shape), where=np.asarray(denominator) > 0)
