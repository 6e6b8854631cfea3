"""Corpus BLEU-4 (Papineni et al. 2002) as a function of additive statistics, with the smoothing of NIST's mteval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from harness.task import Floats, Statistics

ORDER = 4


def bleu_statistics(golds: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> Statistics:
    """BLEU-4 of a corpus with one reference each: ``bleu_4``.

    Columns: matched n-grams for n = 1..4 (clipped to the reference's counts), predicted n-grams for n = 1..4,
    predicted tokens, reference tokens. The k-th order without a match has precision 1 / (2^k * its n-grams), which is
    sacrebleu's default exponential smoothing. BLEU is 0 if no token matches, or if the corpus is too short to have
    n-grams of every order.

    Args: one token list per example.
    """
    per_unit = np.zeros((len(golds), 2 * ORDER + 2))
    for row, gold, answer in zip(per_unit, golds, answers, strict=True):
        for n in range(1, ORDER + 1):
            predicted, reference = _ngrams(answer, n), _ngrams(gold, n)
            row[n - 1] = sum((predicted & reference).values())
            row[ORDER + n - 1] = predicted.total()
        row[-2:] = len(answer), len(gold)
    return Statistics(per_unit=per_unit, values=_bleu)


def _bleu(sums: Floats) -> Mapping[str, Floats]:
    matched, n_predicted = sums[..., :ORDER], sums[..., ORDER : 2 * ORDER]
    predicted_length, reference_length = sums[..., -2], sums[..., -1]
    defined = (n_predicted.min(-1) > 0) & (matched[..., 0] > 0)
    halvings = np.cumsum(matched == 0, axis=-1)
    smoothed = np.where(matched > 0, matched, 0.5**halvings)
    precision = np.exp(np.log(smoothed / np.maximum(n_predicted, 1)).mean(-1))
    brevity = np.exp(np.minimum(0.0, 1 - reference_length / np.maximum(predicted_length, 1)))
    return {"bleu_4": np.where(defined, brevity * precision, 0.0)}


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
