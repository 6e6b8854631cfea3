"""Metrics of Firefly's tasks, compared with independent implementations."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from harness.scoring.judge import judge
from harness.task import NOT_PARSED, Example, Statistics, to_example
from tasks.common.bleu import bleu_statistics
from tasks.common.metrics import parsed_label_statistics as labels
from tasks.firefly.statistics import char_f1, free_text, sets, short_answers
from tasks.firefly.suite import Firefly
from tasks.firefly.tasks import PROTOCOL, TASKS


def values(statistics: Statistics) -> dict[str, float]:
    return {name: float(v) for name, v in statistics.values(statistics.per_unit.sum(0)).items()}


def corpus(seed: int, n: int = 30, alphabet: str = "春风秋雨花月夜山") -> tuple[list[list[str]], list[list[str]]]:
    """Golds and noisy copies of them, some far too short or too long."""
    draw = random.Random(seed)
    golds = [[draw.choice(alphabet) for _ in range(draw.randint(1, 25))] for _ in range(n)]
    answers = [[c if draw.random() < 0.7 else draw.choice(alphabet) for c in g] for g in golds]
    return golds, [a[: draw.randint(0, 2 * len(a))] + a[: draw.randint(0, 3)] for a in answers]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alphabet", ["春风秋雨花月夜山", "".join(map(chr, range(0x4E00, 0x4E00 + 300)))])
def test_bleu_is_that_of_sacrebleu(seed: int, alphabet: str) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    golds, answers = corpus(seed, alphabet=alphabet)
    theirs = sacrebleu.corpus_bleu(
        [" ".join(a) for a in answers], [[" ".join(g) for g in golds]], tokenize="none", force=True
    )
    assert values(bleu_statistics(golds, answers))["bleu_4"] == pytest.approx(theirs.score / 100, abs=1e-12)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("春风秋雨", "春花月夜"),
        ("春风秋雨", "花月夜山"),
        ("春风秋", "春风秋"),
        ("春风秋雨", ""),
        ("春风", "春风花月夜"),
    ],
)
def test_bleu_is_smoothed_as_sacrebleu_does(gold: str, answer: str) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    theirs = sacrebleu.corpus_bleu([" ".join(answer)], [[" ".join(gold)]], tokenize="none", force=True)
    assert values(bleu_statistics([list(gold)], [list(answer)]))["bleu_4"] == pytest.approx(theirs.score / 100)


def test_bleu_penalises_brevity() -> None:
    score = values(bleu_statistics([list("abcdefgh")], [list("abcdef")]))["bleu_4"]
    assert score == pytest.approx(math.exp(1 - 8 / 6))


Score = Callable[[Sequence[object], Sequence[object]], Statistics]
TEXTS = (["春风秋雨", "花月", "夜山春", NOT_PARSED], ["春风秋月", NOT_PARSED, "夜山春", "花"])
SETS = ([frozenset("ab"), frozenset(), NOT_PARSED], [frozenset("bc"), NOT_PARSED, frozenset("a")])
LABELS = (["是的", "不是", "不是", NOT_PARSED], ["是的", "是的", NOT_PARSED, "不是"])


@pytest.mark.parametrize(
    ("score", "pair"),
    [(free_text, TEXTS), (short_answers, TEXTS), (sets, SETS), (labels, LABELS)],
)
def test_metrics_of_many_samples_at_once_are_those_of_each(
    score: Score, pair: tuple[list[object], list[object]]
) -> None:
    statistics = score(*pair)
    n = len(pair[0])
    weights = np.random.default_rng(0).multinomial(n, [1 / n] * n, size=(2, 3))
    together = statistics.values(weights @ statistics.per_unit)
    for i, j in np.ndindex(2, 3):
        chosen = np.repeat(np.arange(n), weights[i, j])
        alone = score([pair[0][k] for k in chosen], [pair[1][k] for k in chosen])
        expected = values(alone)
        assert {name: float(v[i, j]) for name, v in together.items()} == pytest.approx(expected)
        assert all(0 <= v <= 1 for v in expected.values())


@pytest.mark.parametrize("score", [free_text, short_answers, sets, labels])
def test_without_examples_all_metrics_are_zero(score: Score) -> None:
    for golds in ([], [NOT_PARSED]):
        statistics = score(golds, golds)
        assert statistics.per_unit.shape[0] == len(golds)
        assert set(values(statistics).values()) <= {0.0}


def test_an_example_whose_target_does_not_parse_does_not_count() -> None:
    with_it = values(labels(*LABELS))
    assert with_it == values(labels(LABELS[0][:3], LABELS[1][:3]))
    assert with_it["accuracy"] == pytest.approx(1 / 3)
    # 是的: precision 1/2, recall 1; 不是: never answered.
    assert with_it["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_a_short_answer_is_compared_character_by_character() -> None:
    assert char_f1("一九三零年", "一九三一年") == pytest.approx(4 / 5)
    assert char_f1("年年", "年") == pytest.approx(2 / 3)
    assert char_f1("甲", "乙") == char_f1("甲", "") == 0
    means = values(short_answers(["甲乙", "丙"], ["甲", "丙"]))
    assert means == pytest.approx({"exact_match": 0.5, "char_f1": (2 / 3 + 1) / 2})


def test_sets_are_scored_over_all_examples_together() -> None:
    assert values(sets(*SETS)) == pytest.approx({"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2})


def test_rouge_l_of_texts_is_the_longest_common_subsequence_of_characters() -> None:
    means = values(free_text(["春风秋雨花"], ["春秋花月"]))
    precision, recall = 3 / 4, 3 / 5
    assert means["rouge_l"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-7)


def test_confusions_are_counted_by_gold_class() -> None:
    prompt = "积极还是消极？"
    golds = [
        Example(id=str(i), task="SentimentAnalyze", prompt=prompt, target=t)
        for i, t in enumerate(["积极", "积极", "消极"])
    ]
    diagnose = TASKS["SentimentAnalyze"].diagnose
    assert diagnose is not None
    assert diagnose(golds, ["积极", "?", "积极"]) == {
        "confusion": {"积极": {"not parsed": 1, "积极": 1}, "消极": {"积极": 1}}
    }


def test_every_kind_has_one_protocol_and_it_is_not_named_official() -> None:
    assert len(TASKS) == 24
    for task in TASKS.values():
        assert list(task.protocols) == [PROTOCOL] == ["harness"]
        rule = task.protocols[PROTOCOL]
        answers = [rule.parse("是的", Example(id="1", task=task.name, prompt="", target=""))]
        assert rule.headline in rule.statistics(answers, answers).values(
            np.zeros(rule.statistics(answers, answers).per_unit.shape[1])
        )


def test_real_targets_parse_and_are_correct(shared_data: Path, hf_cache: Path) -> None:
    suite = Firefly()
    source = str(shared_data / "firefly")
    for split in suite.splits(source):
        examples = [to_example(row) for row in suite.read(source, split)]
        for task in suite.tasks.values():
            mine = [e for e in examples if e.task == task.name]
            judged = judge(task, PROTOCOL, mine, [e.target for e in mine])
            assert len(mine) >= 44
            assert judged.n_unparsed == 0, f"{task.name} {split}"
            assert not judged.n_invented
            headline = values(judged.statistics)[task.protocols[PROTOCOL].headline]
            assert headline == pytest.approx(1, abs=1e-8), f"{task.name} {split}"
