"""ROUGE of English texts: the same values as Google's package rouge_score with ``use_stemmer=True``.

Tokens are the lower-case ASCII words and numbers of a text; those of more than three characters are stemmed by Porter's
algorithm as NLTK has it. ROUGE-1 counts each token as often as both texts have it, ROUGE-L is based on their longest
common subsequence, and F is 0 where nothing is in common. The subsequence comes from a compiled library.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nltk.stem.porter import PorterStemmer

_NOT_TOKEN: Final = re.compile(r"[^a-z0-9]+")
_UNSTEMMED: Final = 3  # Words of this many characters or fewer are not stemmed.


@dataclass(frozen=True, kw_only=True, slots=True)
class EnglishRouge:
    """F of ROUGE-1 and ROUGE-L of one pair of texts, between 0 and 1."""

    rouge_1: float
    rouge_l: float


@lru_cache(maxsize=1 << 13)
def english_tokens(text: str) -> tuple[str, ...]:
    """The stemmed tokens of a text; none for a text without ASCII letters and digits."""
    words = _NOT_TOKEN.sub(" ", text.lower()).split()
    return tuple(_stem(word) for word in words)


def english_rouge(gold: str, predicted: str) -> EnglishRouge:
    """ROUGE of a prediction against one reference; both values are 0 if either has no tokens."""
    from rapidfuzz.distance import LCSseq

    a, b = english_tokens(gold), english_tokens(predicted)
    overlap = (Counter(a) & Counter(b)).total()
    return EnglishRouge(rouge_1=_f(overlap, a, b), rouge_l=_f(LCSseq.similarity(a, b), a, b))


def _f(common: int, gold: Sequence[str], predicted: Sequence[str]) -> float:
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    return word if len(word) <= _UNSTEMMED else str(_stemmer().stem(word))


@cache
def _stemmer() -> PorterStemmer:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()
