"""The official metrics of SuperGLUE (Wang et al., NeurIPS 2019).

Where a task has two metrics, its score is their mean, which has a name here: ``acc_and_f1`` of CB, ``f1a_and_em`` of
MultiRC, ``f1_and_em`` of ReCoRD.

The unit of MultiRC and of ReCoRD is the passage. MultiRC's answers to one question are scored together, so that they
cannot be resampled one by one, and a passage has about eleven questions, which a model that has misread it gets wrong
together. Passages, not questions, were collected independently of each other. The same holds for ReCoRD, whose queries
of one article have several forms. Intervals over questions would be too narrow.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from harness.task import Answer, Floats, Statistics
from tasks.common.metrics import grouped, joined, mean_statistics, parsed_label_statistics, ratio
from tasks.superglue.answers import Entities, Verdict

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def commitment(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """Metrics of labels, and ``acc_and_f1``: the mean of accuracy and macro-F1, which is CB's score."""
    return _with_mean(parsed_label_statistics(golds, answers), "acc_and_f1", "accuracy", "macro_f1")


def verdicts(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """MultiRC's metrics, one row for each passage.

    ``f1a``: F1 of the answers that are said to be true, over all answers. ``em``: the share of questions of which every
    answer is judged correctly. ``f1a_and_em``: their mean. ``accuracy``: the share of answers judged correctly. An
    unparsed prediction is wrong, and says of no answer that it is true.

    Columns: hits, answers said to be true, true answers, correctly judged answers, answers, exact questions, questions.
    """
    pairs = [(gold, answer) for gold, answer in zip(golds, answers, strict=True) if isinstance(gold, Verdict)]
    per_answer = np.zeros((len(pairs), 5))
    exact: dict[tuple[str, str], bool] = {}
    for row, (gold, answer) in zip(per_answer, pairs, strict=True):
        said = answer.value if isinstance(answer, Verdict) else None
        row[:] = said == gold.value == "True", said == "True", gold.value == "True", said == gold.value, 1
        question = (gold.passage, gold.question)
        exact[question] = exact.get(question, True) and said == gold.value
    of_answers = grouped(Statistics(per_unit=per_answer, values=_of_answers), [gold.passage for gold, _ in pairs])
    of_questions = grouped(mean_statistics({"em": list(exact.values())}), [passage for passage, _ in exact])
    return _with_mean(joined(of_answers, of_questions), "f1a_and_em", "f1a", "em")


def _of_answers(sums: Floats) -> Mapping[str, Floats]:
    hits, said, true, correct, n = (sums[..., i] for i in range(5))
    return {"f1a": ratio(2 * hits, said + true), "accuracy": ratio(correct, n)}


def entities(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """ReCoRD's metrics, one row for each passage: means over queries, each the maximum over its correct entities.

    ``f1``: F1 of tokens. ``em``: equality. ``f1_and_em``: their mean. Texts are normalised as for SQuAD: lower case,
    without punctuation and articles. An unparsed prediction has 0.
    """
    pairs = [(gold, answer) for gold, answer in zip(golds, answers, strict=True) if isinstance(gold, Entities)]
    f1, em = [], []
    for gold, answer in pairs:
        said = answer.names[0] if isinstance(answer, Entities) else None
        f1.append(0.0 if said is None else max(token_f1(name, said) for name in gold.names))
        em.append(0.0 if said is None else max(float(normalised(name) == normalised(said)) for name in gold.names))
    rows = grouped(mean_statistics({"f1": f1, "em": em}), [gold.passage for gold, _ in pairs])
    return _with_mean(rows, "f1_and_em", "f1", "em")


def token_f1(gold: str, said: str) -> float:
    """F1 of the tokens of two texts after SQuAD's normalisation; 0 without a common token."""
    a, b = normalised(gold).split(), normalised(said).split()
    common = (Counter(a) & Counter(b)).total()
    return 2 * common / (len(a) + len(b)) if common else 0.0


def normalised(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _with_mean(statistics: Statistics, name: str, first: str, second: str) -> Statistics:
    """The same statistics with one more metric, the mean of two of them."""

    def values(sums: Floats) -> Mapping[str, Floats]:
        found = dict(statistics.values(sums))
        return {**found, name: (found[first] + found[second]) / 2}

    return Statistics(per_unit=statistics.per_unit, values=values)
