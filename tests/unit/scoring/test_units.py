"""Examples that come from one text: intervals, deviations and comparisons are over texts, not over single answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
from datasets import Dataset
from sklearn.metrics import f1_score

from harness.data.splits import load_split
from harness.errors import HarnessError
from harness.scoring.check_rules import check_rules
from harness.scoring.randomisation import contributions
from harness.scoring.score import render_scores, score_predictions
from harness.scoring.statistics import Side, difference, resample, unit_counts
from harness.store.record import Prediction, text_hash
from harness.task import Example, Protocol, Statistics, Suite, Task
from tasks.common.metrics import grouped, label_statistics, mean_statistics, set_statistics

Answers = list[tuple[str, bool, bool]]  # question, gold, predicted


def clumped(n: int, seed: int = 0) -> Answers:
    """n questions of one to four answers; most predictions of a question are right together or wrong together."""
    rng = np.random.default_rng(seed)
    found: Answers = []
    for i in range(n):
        good = rng.random() < 0.7
        for gold in rng.random(rng.integers(1, 5)) < 0.5:
            found.append((f"question {i}", bool(gold), bool(gold == (good if rng.random() < 0.9 else not good))))
    return found


def by_question(answers: Answers) -> Statistics:
    items = [({i} if gold else set(), {i} if said else set()) for i, (_, gold, said) in enumerate(answers)]
    rows = set_statistics([gold for gold, _ in items], [said for _, said in items])
    return grouped(rows, [question for question, _, _ in answers])


def f1(answers: Answers) -> float:
    return float(f1_score([g for _, g, _ in answers], [p for _, _, p in answers], zero_division=0.0))


def questions_of(answers: Answers) -> list[Answers]:
    names = dict.fromkeys(question for question, _, _ in answers)
    return [[a for a in answers if a[0] == name] for name in names]


def test_draws_are_those_of_a_direct_bootstrap_over_questions() -> None:
    answers = clumped(30)
    questions = questions_of(answers)
    counts = unit_counts("toy", 30, 200)
    found = resample(by_question(answers), "f1", counts)
    expected = [
        f1([a for question, n in zip(questions, row, strict=True) for a in question * int(n)]) for row in counts
    ]
    np.testing.assert_allclose(found.draws, expected)
    assert found.value == pytest.approx(f1(answers))


def test_deviations_are_those_of_leaving_out_whole_questions() -> None:
    answers = clumped(20)
    questions = questions_of(answers)
    left = np.array([f1([a for q in questions if q is not out for a in q]) for out in questions])
    np.testing.assert_allclose(contributions(by_question(answers), "f1"), (left.mean() - left) * 19 / 20)


def test_answers_that_are_right_or_wrong_together_have_a_wider_interval_than_independent_ones() -> None:
    answers = clumped(60)
    right = [float(gold == said) for _, gold, said in answers]
    rows = mean_statistics({"accuracy": right})
    texts = grouped(rows, [question for question, _, _ in answers])
    single = resample(rows, "accuracy", unit_counts("toy", len(answers)))
    whole = resample(texts, "accuracy", unit_counts("toy", 60))
    assert single.value == whole.value
    assert whole.draws.std() > 1.3 * single.draws.std()


def test_a_comparison_swaps_and_counts_questions() -> None:
    answers = clumped(40)
    other = [(question, gold, not gold if i % 7 == 0 else said) for i, (question, gold, said) in enumerate(answers)]
    counts = unit_counts("toy", 40)
    a, b = (resample(by_question(one), "f1", counts) for one in (answers, other))
    found = difference(Side(runs=[a], seeded=False), Side(runs=[b], seeded=False))
    assert found.df == 39
    left_out = [
        f1([x for q in kept for x in answers if x[0] == q]) - f1([x for q in kept for x in other if x[0] == q])
        for out in range(40)
        for kept in [[f"question {i}" for i in range(40) if i != out]]
    ]
    jackknife = 39 / 40 * ((np.array(left_out) - np.mean(left_out)) ** 2).sum()
    assert found.error == pytest.approx(np.sqrt(jackknife))


def test_units_are_in_the_order_in_which_they_first_occur() -> None:
    rows = mean_statistics({"accuracy": [1.0, 0.0, 1.0, 1.0]})
    np.testing.assert_array_equal(grouped(rows, ["b", "a", "b", "c"]).per_unit, [[2, 2], [0, 1], [1, 1]])
    assert grouped(label_statistics([], []), []).per_unit.shape[0] == 0


def by_page(golds: Sequence[Any], answers: Sequence[Any]) -> Statistics:
    right = [float(gold == answer) for gold, answer in zip(golds, answers, strict=True)]
    return grouped(mean_statistics({"accuracy": right}), [page for page, _ in golds])


def by_predicted_page(golds: Sequence[Any], answers: Sequence[Any]) -> Statistics:
    right = [float(gold == answer) for gold, answer in zip(golds, answers, strict=True)]
    return grouped(mean_statistics({"accuracy": right}), answers)


@dataclass(frozen=True, kw_only=True)
class Pages(Suite):
    """Questions about pages, three for each page."""

    name: ClassVar[str] = "pages"
    version: ClassVar[int] = 1
    n_pages: int = 40
    statistics: Any = field(default=by_page)

    @property
    def tasks(self) -> Mapping[str, Task]:
        rule = Protocol(
            parse=lambda text, e: (e.id.partition(".")[0], text), statistics=self.statistics, headline="accuracy"
        )
        task = Task(name="reading", version=1, kind="label", one_label=True, protocols={"official": rule})
        return {"reading": task}

    def read(self, source: str, split: str) -> Dataset:
        return Dataset.from_list(
            [
                {"id": f"{page}.{i}", "task": "reading", "prompt": f"{page}, {i}?", "target": "yes" if i % 2 else "no"}
                for page in range(self.n_pages)
                for i in range(3)
            ]
        )


def predictions(examples: Sequence[Example], text: str) -> dict[str, list[Prediction]]:
    return {
        "reading": [
            Prediction(
                id=e.id,
                prompt_hash=text_hash(e.prompt),
                target_hash=text_hash(e.target),
                text=text,
                tokens=1,
                cut=False,
            )
            for e in examples
        ]
    }


@pytest.mark.parametrize(("n_pages", "mean_of"), [(40, ()), (50, ("reading",))])
def test_a_mean_needs_fifty_pages_and_a_table_says_how_many_there_are(n_pages: int, mean_of: tuple[str, ...]) -> None:
    suite = Pages(n_pages=n_pages)
    examples = load_split(suite, "here", "test", ["reading"]).of("reading")
    scored = score_predictions(suite, {"reading": examples}, predictions(examples, "no"))
    table = scored.scores.root["official"]
    assert (table.tasks["reading"].n, table.tasks["reading"].n_units) == (3 * n_pages, n_pages)
    assert table.mean_of == mean_of
    assert f"reading: the interval is over groups of examples that belong together ({n_pages})" in render_scores(
        scored.scores, "official"
    )
    assert scored.draws["reading"].correct == {}, "McNemar's test would count answers as independent"


def test_units_that_depend_on_the_predictions_are_an_error() -> None:
    good, bad = Pages(), Pages(statistics=by_predicted_page)
    check_rules(good, load_split(good, "here", "test", ["reading"]))
    with pytest.raises(HarnessError, match=r"units for the references as predictions .* Group the gold answers"):
        check_rules(bad, load_split(bad, "here", "test", ["reading"]))
