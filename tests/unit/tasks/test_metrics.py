"""Metrics compared with those of scikit-learn and rouge_chinese."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.common.metrics import label_statistics, mean_statistics, rouge_statistics, set_statistics
from tasks.common.rouge import rouge, sentence_tokens

LABELS = st.sampled_from(["红", "绿", "蓝", "黄"])
PREDICTED = st.sampled_from(["红", "绿", "蓝", "黄", "青色", "不知道"])


def metric(statistics, weights=None):
    """Metrics of all examples, or of a resample; weights: how often each example was drawn."""
    per_unit = statistics.per_unit
    sums = per_unit.sum(0) if weights is None else np.asarray(weights, dtype=float) @ per_unit
    return {name: float(value) for name, value in statistics.values(sums).items()}


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(LABELS, PREDICTED), min_size=1, max_size=25), data=st.data())
def test_label_metrics_of_any_resample_are_those_of_the_scikit_learn_report(pairs, data):
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    statistics = label_statistics([g for g, _ in pairs], [p for _, p in pairs])
    drawn = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=30))
    ours = metric(statistics, np.bincount(drawn, minlength=len(pairs)))
    golds, answers = zip(*(pairs[i] for i in drawn), strict=True)
    assert ours["accuracy"] == pytest.approx(accuracy_score(golds, answers), abs=1e-12)
    assert ours["micro_f1"] == pytest.approx(accuracy_score(golds, answers), abs=1e-12)
    for average in ("macro", "weighted"):
        theirs = precision_recall_fscore_support(golds, answers, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), theirs, strict=False):
            assert ours[f"{average}_{name}"] == pytest.approx(value, abs=1e-12)


def test_label_metrics_of_many_resamples_are_those_of_each():
    rng = np.random.default_rng(3)
    statistics = label_statistics(list("红绿蓝红绿蓝红"), ["红", "青", "蓝", "绿", None, "紫", "红"])
    draws = rng.integers(0, 3, (2, 5, 7)).astype(float)
    many = statistics.values(draws @ statistics.per_unit)
    for i, j in np.ndindex(2, 5):
        assert {name: float(value[i, j]) for name, value in many.items()} == pytest.approx(
            metric(statistics, draws[i, j])
        )


def test_no_examples_have_metrics_of_zero():
    for statistics in (set_statistics([], []), label_statistics([], []), rouge_statistics([], [])):
        assert set(metric(statistics).values()) == {0.0}


def test_a_prediction_without_a_label_is_wrong_and_adds_no_class():
    golds = ["红", "红", "绿", "绿"]
    with_new_label = metric(label_statistics(golds, ["红", "红", "绿", "青色"]))
    without_label = metric(label_statistics(golds, ["红", "红", "绿", None]))
    assert with_new_label["accuracy"] == without_label["accuracy"] == 0.75
    assert without_label["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert with_new_label["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_set_metrics_count_items_over_all_examples_and_vectorise_over_resamples():
    statistics = set_statistics([{"a", "b"}, {"c"}, set()], [{"a"}, {"c", "d", "e"}, set()])
    assert metric(statistics) == pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7})
    draws = np.array([[1, 1, 1], [2, 0, 1], [0, 0, 3]])
    many = statistics.values(draws @ statistics.per_unit)
    assert many["f1"].tolist() == pytest.approx([4 / 7, 2 / 3, 0.0])
    assert many["precision"].tolist() == pytest.approx([2 / 4, 1.0, 0.0])


def test_a_mean_over_items_weighs_an_example_by_its_items():
    statistics = mean_statistics({"x": [0.5, 3.0, 0.0]}, [1, 4, 0])
    assert metric(statistics)["x"] == pytest.approx(3.5 / 5)
    assert metric(statistics, [1, 0, 2])["x"] == 0.5
    assert metric(statistics, [0, 0, 1])["x"] == 0.0


def test_rouge_is_that_of_rouge_chinese_to_nine_digits():
    from rouge_chinese import Rouge

    random.seed(5)
    words = [
        "胸",
        "痛",
        "三",
        "天",
        "。",
        "，",
        "？",
        "?!",
        "......",
        "……",
        "”",
        "’",
        "a",
        "bc",
        "\n",
        "\u2028",
        "。。”",
    ]
    texts = [" ".join(random.choices(words, k=random.randint(1, 40))) + " 完" for _ in range(120)]
    theirs = Rouge().get_scores(texts[::2], texts[1::2])
    for predicted, gold, expected in zip(texts[::2], texts[1::2], theirs, strict=True):
        ours = rouge(sentence_tokens(gold), sentence_tokens(predicted))
        assert ours.rouge_l == pytest.approx(expected["rouge-l"]["f"], abs=1e-9)
        assert ours.precision == pytest.approx(expected["rouge-l"]["p"], abs=1e-9)
        assert ours.recall == pytest.approx(expected["rouge-l"]["r"], abs=1e-9)
        assert ours.rouge_1 == pytest.approx(expected["rouge-1"]["f"], abs=1e-9)
        assert ours.rouge_2 == pytest.approx(expected["rouge-2"]["f"], abs=1e-9)


def test_rouge_statistics_average_over_texts_not_over_examples():
    statistics = rouge_statistics([[["a", "b"]], [["c"], ["d"]]], [[["a", "b"]], [["x"], ["d"]]])
    assert metric(statistics)["rouge_l"] == pytest.approx(2 / 3, abs=1e-7)
    assert metric(statistics, [0, 1])["rouge_l"] == pytest.approx(1 / 2, abs=1e-7)
