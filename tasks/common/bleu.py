"""Corpus BLEU-4 as a function of column sums (Papineni et al. 2002), smoothed as NIST's mteval does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from harness.task import Floats, Statistics

ORDER = 4


def bleu_statistics(golds: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> Statistics:
    """BLEU-4 of a corpus with one reference each: ``bleu_4``.

    Columns: matched n-grams for n = 1..4 (clipped to the reference's counts), predicted n-grams for n = 1..4,
    predicted tokens, reference tokens. The k-th order without a match has the precision 1 / (2^k * its n-grams), the
    exponential smoothing that sacrebleu has by default; a corpus in which nothing matches, or too short for an
    n-gram of some order, has BLEU 0.

    Args: token lists, n of each.
    """
    rows = np.zeros((len(golds), 2 * ORDER + 2))
    for row, gold, answer in zip(rows, golds, answers, strict=True):
        for n in range(1, ORDER + 1):
            predicted, reference = _ngrams(answer, n), _ngrams(gold, n)
            row[n - 1] = sum((predicted & reference).values())
            row[ORDER + n - 1] = predicted.total()
        row[-2:] = len(answer), len(gold)
    return Statistics(rows=rows, values=_bleu)


def _bleu(sums: Floats) -> Mapping[str, Floats]:
    matched, possible = sums[..., :ORDER], sums[..., ORDER : 2 * ORDER]
    predicted, reference = sums[..., -2], sums[..., -1]
    defined = (possible.min(-1) > 0) & (matched[..., 0] > 0)
    halvings = np.cumsum(matched == 0, axis=-1)
    hits = np.where(matched > 0, matched, 0.5**halvings)
    precision = np.exp(np.log(hits / np.maximum(possible, 1)).mean(-1))
    brevity = np.exp(np.minimum(0.0, 1 - reference / np.maximum(predicted, 1)))
    return {"bleu_4": np.where(defined, brevity * precision, 0.0)}


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
