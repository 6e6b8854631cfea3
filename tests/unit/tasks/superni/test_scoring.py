"""The metrics of Tk-Instruct compared with rouge_score and with values counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.scoring.judge import judge
from harness.task import NOT_PARSED, Example
from tasks.common.english_rouge import english_rouge, english_tokens
from tasks.superni.scoring import EXACT_CATEGORIES, make_task, normalised, parse_text

PLAIN = "running runs ran ponies pony relational 42 a the The dying news gas generously"
WORDS = st.sampled_from([*PLAIN.split(), "—", "it's", "U.S.", "state-of-the-art", "naïve", "他", "_", "\n"])
TEXTS = st.lists(WORDS, max_size=14).map(" ".join)


def example(*references: str, target: str | None = None) -> Example:
    first = references[0] if target is None else target
    return Example(id="1", task="t", prompt="p", target=first, references=references if len(references) > 1 else None)


def metrics(examples: list[Example], predictions: list[str]) -> dict[str, float]:
    judged = judge(make_task("t", "Title Generation"), "tk", examples, predictions)
    statistics = judged.statistics
    return {name: float(value) for name, value in statistics.values(statistics.per_unit.sum(0)).items()}


@settings(max_examples=150, deadline=None)
@given(gold=TEXTS, predicted=TEXTS)
def test_rouge_is_that_of_rouge_score_with_its_stemmer(gold: str, predicted: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(gold, predicted)
    ours = english_rouge(gold, predicted)
    assert ours.rouge_1 == pytest.approx(theirs["rouge1"].fmeasure, abs=1e-12)
    assert ours.rouge_l == pytest.approx(theirs["rougeL"].fmeasure, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(references=st.lists(TEXTS, min_size=1, max_size=4), predicted=TEXTS)
def test_each_metric_is_the_best_over_the_references(references: list[str], predicted: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    found = metrics([example(*references, target="x")], [predicted])
    if len(references) == 1:
        references = ["x"]
    for name in ("rouge1", "rougeL"):
        best = max(scorer.score(reference, predicted)[name].fmeasure for reference in references)
        assert found[name] == pytest.approx(best, abs=1e-12)


def test_rouge_of_a_small_pair_is_the_one_counted_by_hand() -> None:
    """Gold: the cat sat down (4 tokens); predicted: the cats down sat now (5): 4 in common, 3 of them in order."""
    found = english_rouge("The cat sat down.", "the cats down sat now")
    assert found.rouge_1 == pytest.approx(2 * 4 / 9)
    assert found.rouge_l == pytest.approx(2 * 3 / 9)
    assert english_tokens("Running dogs; 3 runs!") == ("run", "dog", "3", "run")


def test_exact_match_ignores_case_punctuation_and_white_space_but_not_articles() -> None:
    assert normalised("  The U.S.,\n Army ") == "the us army"
    golds = [example("The answer"), example("yes", "Yes, it is"), example("a cat"), example("no")]
    assert metrics(golds, ["the  answer!", "yes it is", "cat", "not"])["exact_match"] == 0.5


def test_metrics_are_means_over_instances() -> None:
    found = metrics([example("red cup"), example("blue", "green")], ["red cup", "a green tree"])
    assert found["rougeL"] == pytest.approx((1 + 0.5) / 2)
    assert found["exact_match"] == 0.5


def test_a_blank_prediction_is_not_parsed_and_scores_as_the_empty_text() -> None:
    assert parse_text(" \n", example("x")) is NOT_PARSED
    assert metrics([example("x"), example("-", "none")], ["", " "]) == {"exact_match": 0.5, "rouge1": 0, "rougeL": 0}


def test_an_example_without_a_target_affects_no_metric() -> None:
    assert metrics([example("x"), example("")], ["x", "anything"])["rougeL"] == 1


@pytest.mark.parametrize("category", sorted(EXACT_CATEGORIES))
def test_categories_with_labels_are_headed_by_exact_match(category: str) -> None:
    assert make_task("t", category).protocols["tk"].headline == "exact_match"


@pytest.mark.parametrize("category", ["Title Generation", "Question Answering", "Unknown"])
def test_other_categories_are_headed_by_rouge_l(category: str) -> None:
    task = make_task("t", category)
    assert (task.kind, task.protocols["tk"].headline) == (category, "rougeL")
