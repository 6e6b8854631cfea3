"""Corpus chrF (Popović 2015) as a function of additive statistics, with the settings of sacrebleu's default (chrF2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from harness.task import Floats, Statistics

ORDER = 6
_BETA_SQUARED = 4.0  # recall has beta = 2 times the weight of precision


def chrf_statistics(golds: Sequence[str], answers: Sequence[str]) -> Statistics:
    """chrF2 of a corpus with one reference each: ``chrf``.

    Columns, for n = 1..6: n-grams of characters in the predictions, in the references, and in both (clipped). White
    space does not count. Precision and recall are means over the orders of which both sides have n-grams; F is 0 if
    there is no such order.
    """
    per_unit = np.zeros((len(golds), 3 * ORDER))
    for row, gold, answer in zip(per_unit, golds, answers, strict=True):
        reference, predicted = "".join(gold.split()), "".join(answer.split())
        for n in range(1, ORDER + 1):
            theirs, ours = _ngrams(reference, n), _ngrams(predicted, n)
            row[n - 1 :: ORDER] = ours.total(), theirs.total(), (ours & theirs).total()
    return Statistics(per_unit=per_unit, values=_chrf)


def _chrf(sums: Floats) -> Mapping[str, Floats]:
    predicted, reference, matched = (sums[..., i * ORDER : (i + 1) * ORDER] for i in range(3))
    defined = (predicted > 0) & (reference > 0)
    precision = np.where(defined, matched / np.maximum(predicted, 1), 0.0)
    recall = np.where(defined, matched / np.maximum(reference, 1), 0.0)
    n_orders = np.maximum(defined.sum(-1), 1)
    p, r = precision.sum(-1) / n_orders, recall.sum(-1) / n_orders
    total = _BETA_SQUARED * p + r
    return {"chrf": np.where(total > 0, (1 + _BETA_SQUARED) * p * r / np.where(total > 0, total, 1.0), 0.0)}


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))
