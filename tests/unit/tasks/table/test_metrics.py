"""The metrics that a suite's file names, against independent computations; the parsers accept any text."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.task import NOT_PARSED, Answer, Example
from tasks.table.answers import AnswerParser, make_task
from tasks.table.keys import TaskKeys
from tasks.table.metrics import METRICS, Family, Settings, items_of, numbers_in, statistics_of, token_f1, tokens_of

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "red", "dog", "ran", "far", "away", "我", "喜", "欢", "猫"]


def value(name: str, golds: Sequence[Answer], answers: Sequence[Answer], **settings: object) -> float:
    statistics = statistics_of([name], Settings(**settings))(golds, answers)  # type: ignore[arg-type]
    return float(statistics.values(statistics.per_unit.sum(0))[name])


def texts(seed: int, n: int = 30) -> tuple[list[str], list[str]]:
    """Golds, and predictions that share some of their words."""
    rng = random.Random(seed)
    golds = [" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) for _ in range(n)]
    return golds, [" ".join(w if rng.random() < 0.7 else rng.choice(WORDS) for w in g.split()) for g in golds]


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_f1_of_labels_is_that_of_scikit_learn(average: str) -> None:
    from sklearn.metrics import f1_score

    rng = random.Random(1)
    golds, answers = rng.choices("abc", k=80), rng.choices("abcd", k=80)
    assert value(f"{average}_f1", golds, answers) == pytest.approx(f1_score(golds, answers, average=average))


def test_accuracy_counts_an_unparsed_prediction_as_wrong() -> None:
    assert value("accuracy", ["a", "b", "a"], ["a", NOT_PARSED, "b"]) == pytest.approx(1 / 3)


def test_set_f1_is_that_of_scikit_learn_over_all_items() -> None:
    from sklearn.metrics import f1_score

    rng = random.Random(2)
    golds = [rng.sample("abcdef", 3) for _ in range(40)]
    answers = [rng.sample("abcdef", rng.randint(1, 4)) for _ in range(40)]
    table = [[[letter in items for letter in "abcdef"] for items in side] for side in (golds, answers)]
    found = value("set_f1", [";".join(g) for g in golds], ["; ".join(a) for a in answers], separator=";")
    assert found == pytest.approx(f1_score(np.array(table[0]).ravel(), np.array(table[1]).ravel()))


@pytest.mark.parametrize("seed", range(3))
def test_chrf_is_that_of_sacrebleu(seed: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    golds, answers = texts(seed)
    assert value("chrf", golds, answers) == pytest.approx(sacrebleu.corpus_chrf(answers, [golds]).score / 100)


@pytest.mark.parametrize("seed", range(3))
def test_bleu_is_that_of_sacrebleu_on_the_same_tokens(seed: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    golds, answers = texts(seed)
    joined = [[" ".join(tokens_of(text)) for text in side] for side in (answers, golds)]
    expected = sacrebleu.corpus_bleu(joined[0], [joined[1]], tokenize="none", force=True).score / 100
    assert value("bleu", golds, answers) == pytest.approx(expected)


def test_chrf_computed_by_hand() -> None:
    """abc and abd: 2 of 3 single characters match, 1 of 2 pairs, 0 of 1 triples; no order has more."""
    assert value("chrf", ["abc"], ["abd"]) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert value("chrf", ["a b c"], ["abc"]) == pytest.approx(1.0)
    assert value("chrf", ["abc"], [NOT_PARSED]) == 0.0


def test_bleu_computed_by_hand() -> None:
    """Precisions 4/5, 3/4, 2/3, 1/2; the prediction is shorter than the reference by one token."""
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * np.exp(1 - 6 / 5)
    assert value("bleu", ["a b c d e f"], ["a b c d x"]) == pytest.approx(expected)


def test_token_f1_exact_match_and_rouge_computed_by_hand() -> None:
    assert token_f1("the red cat", "red dog") == pytest.approx(2 * 1 / (3 + 2))
    assert token_f1("我喜欢猫", "我 喜欢") == pytest.approx(2 * 3 / (4 + 3))
    assert value("exact_match", ["a b", "c"], ["a b", "C"]) == pytest.approx(0.5)
    assert value("rouge_l", ["a b c d"], ["a x c"]) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


@pytest.mark.parametrize(
    ("gold", "answer", "tolerance", "right"),
    [
        ("18", "So 3 * 6 = 18", 0.0, True),
        ("18", "18 or 19", 0.0, False),
        ("1234.5", "It is 1,234.50", 0.0, True),
        ("3.14", "3.1", 0.05, True),
        ("-2", "-2", 0.0, True),
        ("5", "five", 0.0, False),
        ("1e3", "1000", 0.0, True),
        ("5", "3-5", 0.0, True),
    ],
)
def test_numeric_match_compares_the_last_numbers(gold: str, answer: str, tolerance: float, right: bool) -> None:
    assert value("numeric_match", [gold], [answer], tolerance=tolerance) == float(right)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_additive_and_1_on_the_targets_themselves(name: str) -> None:
    golds = ["1 a b c d", "2 b c d e", "1 a b c d", "3 x y z w"]
    statistics = statistics_of(list(METRICS), Settings())
    whole = statistics(golds, golds)
    assert float(whole.values(whole.per_unit.sum(0))[name]) == pytest.approx(1.0)
    stacked = whole.values(np.stack([whole.per_unit.sum(0), whole.per_unit[:2].sum(0)]))[name]
    assert stacked.shape == (2,)


def test_only_the_named_metrics_are_reported_and_the_headline_is_first_by_default() -> None:
    keys = TaskKeys(train=("x.csv",), prompt_column="p", target_column="t", metrics=("macro_f1", "chrf"))
    rule = make_task("t", keys).protocols["official"]
    found = rule.statistics(["a", "b"], ["a", "a"])
    assert list(found.values(found.per_unit.sum(0))) == ["macro_f1", "chrf"]
    assert rule.headline == "macro_f1"
    assert make_task("t", keys).kind == "label"


def example(target: str = "", choices: tuple[str, ...] | None = None) -> Example:
    return Example(id="1", task="t", prompt="p", target=target, choices=choices)


def test_the_extracted_answer_is_the_last_match_and_a_target_needs_no_match() -> None:
    parse = AnswerParser(family=Family.TEXT, extract=r"answer is (\w+)")
    assert parse("The answer is A. No, the answer is B.", example("A")) == "B"
    assert parse("A", example("A")) == "A"
    assert parse("B", example("A")) is NOT_PARSED


def test_a_label_is_one_of_the_choices_of_the_file_or_of_the_example() -> None:
    parse = AnswerParser(family=Family.LABEL, ignore_case=True, choices=("Yes", "No"))
    assert parse(" yes\n", example()) == "Yes"
    assert parse("maybe", example()) is NOT_PARSED
    own = AnswerParser(family=Family.LABEL)
    assert own("b", example(choices=("a", "b"))) == "b"
    assert own("c", example(choices=("a", "b"))) is NOT_PARSED


@settings(deadline=None)  # importing libraries is part of the first example
@given(
    st.text(),
    st.sampled_from(Family),
    st.sampled_from([None, r"(\d+)", r"a|(b)", r"^.*$"]),
    st.booleans(),
    st.sampled_from([(), ("a", "b")]),
)
def test_a_parser_accepts_any_text(
    text: str, family: Family, extract: str | None, ignore_case: bool, choices: tuple[str, ...]
) -> None:
    parse = AnswerParser(family=family, extract=extract, ignore_case=ignore_case, choices=choices)
    answer = parse(text, example())
    assert answer is NOT_PARSED or (isinstance(answer, str) and answer == answer.strip())


@settings(deadline=None)  # importing libraries is part of the first example
@given(st.lists(st.text(), min_size=2, max_size=2))
def test_every_metric_accepts_any_texts(pair: list[str]) -> None:
    statistics = statistics_of(list(METRICS), Settings())([pair[0]], [pair[1]])
    values = statistics.values(statistics.per_unit.sum(0))
    assert all(0 <= float(v) <= 1 + 1e-9 for v in values.values())


def test_the_parsing_of_long_texts_takes_linear_time() -> None:
    assert numbers_in("1," * 500_000) == []  # one number, larger than any float
    assert len(numbers_in("1 " * 200_000)) == 200_000
    assert numbers_in("9" * 400) == []  # larger than any float
    assert len(items_of("a," * 500_000, ",")) == 1
