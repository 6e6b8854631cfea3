"""SuperGLUE's metrics against scikit-learn, and against a MultiRC and a ReCoRD that are computed by hand."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from harness.scoring.statistics import resample, unit_counts
from harness.task import NOT_PARSED, Answer, Statistics
from tasks.superglue.answers import Entities, Verdict
from tasks.superglue.statistics import commitment, entities, normalised, token_f1, verdicts

LABELS = ("entailment", "contradiction", "neutral")


def metrics(statistics: Statistics) -> dict[str, float]:
    return {name: float(value) for name, value in statistics.values(statistics.per_unit.sum(0)).items()}


def test_cb_is_the_mean_of_accuracy_and_macro_f1_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        golds, answers = [*LABELS, *rng.choice(LABELS, 50)], [*LABELS, *rng.choice(LABELS, 50)]
        found = metrics(commitment(golds, answers))
        accuracy, f1 = accuracy_score(golds, answers), f1_score(golds, answers, average="macro", labels=LABELS)
        assert found["accuracy"] == pytest.approx(accuracy)
        assert found["macro_f1"] == pytest.approx(f1)
        assert found["acc_and_f1"] == pytest.approx((accuracy + f1) / 2)
    unparsed = metrics(commitment(LABELS, [*LABELS[:2], NOT_PARSED]))
    assert unparsed["accuracy"] == pytest.approx(2 / 3)
    assert unparsed["macro_f1"] == pytest.approx(f1_score([0, 1, 2], [0, 1, 9], average="macro", labels=[0, 1, 2]))


def verdict(question: str, value: bool) -> Verdict:
    return Verdict(passage=question.partition("-")[0], question=question, value=str(value))


def test_a_multirc_by_hand() -> None:
    """Passage 0 has two questions, passage 1 one. Said to be true: 4 answers, 3 of them rightly; true answers: 4."""
    golds = [("0-0", True), ("0-0", True), ("0-0", False), ("0-1", False), ("1-0", True), ("1-0", True)]
    said = [True, True, False, True, True, None]
    answers = [NOT_PARSED if s is None else verdict(q, s) for (q, _), s in zip(golds, said, strict=True)]
    statistics = verdicts([verdict(q, gold) for q, gold in golds], answers)
    found = metrics(statistics)
    assert found["f1a"] == pytest.approx(2 * 3 / (4 + 4))
    assert found["em"] == pytest.approx(1 / 3)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["f1a_and_em"] == pytest.approx((0.75 + 1 / 3) / 2)
    np.testing.assert_array_equal(statistics.per_unit, [[2, 3, 2, 3, 4, 1, 2], [1, 1, 2, 1, 2, 0, 1]])


def random_multirc(n_passages: int, seed: int) -> tuple[list[Verdict], list[Verdict]]:
    rng = np.random.default_rng(seed)
    golds, answers = [], []
    for passage in range(n_passages):
        skill = rng.choice([0.5, 0.95])
        for question in range(rng.integers(1, 5)):
            for gold in rng.random(rng.integers(1, 6)) < 0.4:
                golds.append(verdict(f"{passage}-{question}", bool(gold)))
                answers.append(verdict(f"{passage}-{question}", bool(gold == (rng.random() < skill))))
    return golds, answers


def direct(golds: Sequence[Verdict], answers: Sequence[Verdict], copies: Sequence[int]) -> dict[str, float]:
    """F1a by scikit-learn and EM by loops, of a test set that has each passage a number of times."""
    true, said, exact = list[bool](), list[bool](), list[bool]()
    for passage, n in enumerate(copies):
        pairs = [(g, a) for g, a in zip(golds, answers, strict=True) if g.passage == str(passage)]
        questions = {g.question for g, _ in pairs}
        for _ in range(int(n)):
            true += [g.value == "True" for g, _ in pairs]
            said += [a.value == "True" for _, a in pairs]
            exact += [all(g.value == a.value for g, a in pairs if g.question == q) for q in questions]
    f1, em = float(f1_score(true, said, zero_division=0.0)), float(np.mean(exact))
    return {"f1a": f1, "em": em, "accuracy": float(accuracy_score(true, said)), "f1a_and_em": (f1 + em) / 2}


def test_multirc_of_resampled_passages_is_that_of_a_direct_bootstrap() -> None:
    golds, answers = random_multirc(15, 1)
    statistics = verdicts(golds, answers)
    assert statistics.per_unit.shape == (15, 7)
    assert metrics(statistics) == pytest.approx(direct(golds, answers, [1] * 15))
    counts = unit_counts("multirc", 15, 40)
    expected = [direct(golds, answers, row) for row in counts.astype(int).tolist()]
    for metric in ("f1a", "em", "f1a_and_em"):
        np.testing.assert_allclose(resample(statistics, metric, counts).draws, [one[metric] for one in expected])


def test_answers_to_one_passage_that_are_wrong_together_widen_the_interval() -> None:
    golds, answers = random_multirc(60, 2)
    alone = [Verdict(passage=str(i), question=str(i), value=gold.value) for i, gold in enumerate(golds)]
    whole = resample(verdicts(golds, answers), "accuracy", unit_counts("multirc", 60))
    single = resample(verdicts(alone, answers), "accuracy", unit_counts("multirc", len(golds)))
    assert whole.value == single.value
    assert whole.draws.std() > 1.1 * single.draws.std()


def squad_normal(text: str) -> str:
    """SQuAD's published steps, one after the other."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(gold: str, said: str) -> float:
    a, b = squad_normal(gold).split(), squad_normal(said).split()
    n_same = sum((collections.Counter(a) & collections.Counter(b)).values())
    if not n_same:
        return 0.0
    precision, recall = n_same / len(b), n_same / len(a)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("gold", "said"),
    [("The Beatles", "beatles"), ("Ann Lee", "Lee, Ann B."), ("U.S.", "us"), ("Bob", "Ann"), ("a an the", "the"),
     ("Man U man", "man man man"), ("", "x")],
)  # fmt: skip
def test_tokens_are_compared_as_for_squad(gold: str, said: str) -> None:
    assert normalised(gold) == squad_normal(gold)
    assert token_f1(gold, said) == pytest.approx(squad_f1(gold, said))


def query(passage: str, *names: str) -> Entities:
    return Entities(passage=passage, names=names)


def test_a_record_by_hand() -> None:
    golds = [query("0", "Ann Lee", "Ann"), query("0", "Bob"), query("1", "The Moon"), query("2", "Mars")]
    answers: list[Answer] = [query("0", "Lee", "Ann"), query("0", "bob"), query("1", "moon base"), NOT_PARSED]
    statistics = entities(golds, answers)
    found: dict[str, Any] = metrics(statistics)
    assert found["em"] == pytest.approx(1 / 4)
    assert found["f1"] == pytest.approx((2 / 3 + 1 + 2 / 3 + 0) / 4)
    assert found["f1_and_em"] == pytest.approx((found["f1"] + found["em"]) / 2)
    np.testing.assert_allclose(statistics.per_unit, [[5 / 3, 1, 2], [2 / 3, 0, 1], [0, 0, 1]])
