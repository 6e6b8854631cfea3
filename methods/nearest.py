"""The target of the most similar train prompt: what copying alone achieves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from harness.method import Method, Trait
from harness.task import Example

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

ROWS = 2048  # of train and of asked prompts in memory at once: 32 MB of similarities


@dataclass(frozen=True, kw_only=True)
class Nearest(Method):
    """Cosine of character 1-2-gram TF-IDF (weights from the task's train prompts); of equals the first; "" without.

    Memory does not grow with the number of prompts beyond the texts themselves and their vocabulary.
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.ANSWERS})
    summary: ClassVar[str] = "the answer of the most similar training prompt"

    def answer(self, task: str, prompts: Sequence[Example], train: Sequence[Example]) -> Sequence[str]:
        if not train:
            return [""] * len(prompts)
        vectorizer = _vectorizer([example.prompt for example in train])
        answers: list[str] = []
        for asked in _pieces(prompts):
            rows = vectorizer.transform(example.prompt for example in asked)
            best = np.full(len(asked), -1.0)
            answer = [""] * len(asked)
            for known in _pieces(train):
                matrix: Any = vectorizer.transform(example.prompt for example in known)
                similar = (rows @ matrix.T).toarray()
                place = similar.argmax(1)
                value = similar[np.arange(len(asked)), place]
                for row in np.flatnonzero(value > best):
                    best[row], answer[row] = value[row], known[place[row]].target
            answers += answer
        return answers


def _vectorizer(texts: Sequence[str]) -> TfidfVectorizer:
    """Fitted without the matrix of all counts, which for a large task is several GB."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    grams = {"analyzer": "char", "ngram_range": (1, 2), "lowercase": False}
    analyse = TfidfVectorizer(**grams).build_analyzer()
    occurs: Counter[str] = Counter()
    for text in texts:
        occurs.update(set(analyse(text)))
    vocabulary = sorted(occurs) or [" "]
    vectorizer = TfidfVectorizer(**grams, vocabulary={gram: i for i, gram in enumerate(vocabulary)})
    vectorizer.idf_ = np.array([math.log((1 + len(texts)) / (1 + occurs[gram])) + 1 for gram in vocabulary])
    return vectorizer


def _pieces(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    return (examples[first : first + ROWS] for first in range(0, len(examples), ROWS))
