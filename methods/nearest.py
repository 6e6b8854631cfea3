"""The target of the most similar training prompt: the score that copying reaches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from harness.method import Baseline
from harness.task import Example

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

PIECE = 2048  # Training prompts, and prompts to predict for, in memory at once: 32 MB of similarities.


@dataclass(frozen=True, kw_only=True)
class Nearest(Baseline):
    """Similarity is the cosine of character 1-2-gram TF-IDF, with weights from the task's training prompts.

    Of equally similar prompts the first is used; the prediction is "" for a task without training examples. Memory does
    not grow with the number of prompts beyond the prompts themselves and their vocabulary.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "the target of the most similar training prompt"

    def predict(self, examples: Sequence[Example], train: Sequence[Example]) -> Sequence[str]:
        if not train:
            return [""] * len(examples)
        vectorizer = _vectorizer([example.prompt for example in train])
        predictions: list[str] = []
        for piece in _pieces(examples):
            queries = vectorizer.transform(example.prompt for example in piece)
            best = np.full(len(piece), -1.0)
            targets = [""] * len(piece)
            for candidates in _pieces(train):
                matrix: Any = vectorizer.transform(example.prompt for example in candidates)
                similarities = (queries @ matrix.T).toarray()
                index = similarities.argmax(1)
                value = similarities[np.arange(len(piece)), index]
                for query in np.flatnonzero(value > best):
                    best[query], targets[query] = value[query], candidates[index[query]].target
            predictions += targets
        return predictions


def _vectorizer(texts: Sequence[str]) -> TfidfVectorizer:
    """A vectorizer fitted without the matrix of all counts, which takes several GB for a large task."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    grams = {"analyzer": "char", "ngram_range": (1, 2), "lowercase": False}
    analyse = TfidfVectorizer(**grams).build_analyzer()
    frequency: Counter[str] = Counter()
    for text in texts:
        frequency.update(set(analyse(text)))
    vocabulary = sorted(frequency) or [" "]
    vectorizer = TfidfVectorizer(**grams, vocabulary={gram: i for i, gram in enumerate(vocabulary)})
    vectorizer.idf_ = np.array([math.log((1 + len(texts)) / (1 + frequency[gram])) + 1 for gram in vocabulary])
    return vectorizer


def _pieces(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    return (examples[first : first + PIECE] for first in range(0, len(examples), PIECE))
