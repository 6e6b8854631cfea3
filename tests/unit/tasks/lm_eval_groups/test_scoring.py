"""Scores of documents one at a time equal lm-eval's own aggregation and scikit-learn, without lm-eval's evaluator."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval_folder import MEAN, TaskFolder, colour_folder
from sklearn.metrics import f1_score, matthews_corrcoef

from harness.choosing import Choice
from harness.scoring.judge import judge
from harness.task import NOT_PARSED, Example, Task, to_example
from tasks.lm_eval_groups.scoring import f1_of_counts, matthews
from tasks.lm_eval_groups.suite import GroupOptions, LmEvalGroups


@pytest.fixture
def folder(tmp_path: Path, hf_cache: Path) -> TaskFolder:
    return colour_folder(tmp_path / "tasks")


def _opened(folder: TaskFolder, name: str) -> tuple[Task, list[Example]]:
    suite = LmEvalGroups.from_argument(name, GroupOptions(include_path=str(folder.path))).suite
    rows = suite.read(str(folder.path), "test")
    return suite.tasks[name], [to_example(row) for row in rows]


def _metrics(
    task: Task, examples: Sequence[Example], texts: Sequence[str], protocol: str = "official"
) -> dict[str, Any]:
    statistics = judge(task, protocol, examples, texts).statistics
    return dict(statistics.values(statistics.per_unit.sum(0)))


def _scored(examples: Sequence[Example], seed: int = 0) -> tuple[list[str], list[list[float]]]:
    """Random likelihoods for every choice, as texts and as numbers."""
    chance = random.Random(seed)
    values = [[-10 * chance.random() for _ in e.choices or ()] for e in examples]
    texts = [
        Choice(log_likelihoods=tuple(v), greedy=(False,) * len(v)).text(e)
        for v, e in zip(values, examples, strict=True)
    ]
    return texts, values


def test_acc_and_acc_norm_are_argmaxes_of_likelihoods_and_of_likelihoods_by_length(folder: TaskFolder) -> None:
    folder.choices("a")
    task, examples = _opened(folder, "a")
    texts, values = _scored(examples)
    golds = [json.loads(e.document or "")["gold"] for e in examples]
    lengths = np.array([len("red"), len("blue"), len("green")])  # without the delimiter
    found = _metrics(task, examples, texts)
    assert found["acc"] == pytest.approx(np.mean(np.argmax(values, 1) == golds))
    assert found["acc_norm"] == pytest.approx(np.mean(np.argmax(np.array(values) / lengths, 1) == golds))
    assert found["acc"] != found["acc_norm"]


def test_a_text_that_is_a_choice_is_right_or_wrong_and_another_text_is_unparsed(folder: TaskFolder) -> None:
    folder.choices("a")
    task, examples = _opened(folder, "a")
    assert _metrics(task, examples, [e.target for e in examples]) == {"acc": 1.0, "acc_norm": 1.0}
    judged = judge(task, "official", examples, ["red"] * 6 + ["a drum"] * 6)
    assert judged.n_unparsed == 6
    assert judged.statistics.values(judged.statistics.per_unit.sum(0))["acc"] == pytest.approx(2 / 12)


def test_f1_and_mcc_of_choices_equal_scikit_learn(folder: TaskFolder) -> None:
    metrics = [{"metric": name} for name in ("acc", "f1", "mcc")]
    lines = [{"text": f"toy {i}", "gold": int(i % 5 < 2)} for i in range(20)]
    folder.write("test", lines)
    folder.write("train", lines)
    folder.choices("pairs", doc_to_choice=["no", "yes"], metric_list=metrics)
    task, examples = _opened(folder, "pairs")
    texts, values = _scored(examples, seed=1)
    golds, answers = [line["gold"] for line in lines], np.argmax(values, 1)
    found = _metrics(task, examples, texts)
    assert list(found) == ["acc", "f1", "mcc"]
    assert found["f1"] == pytest.approx(f1_score(golds, answers))
    assert found["mcc"] == pytest.approx(max(0.0, matthews_corrcoef(golds, answers)))
    # An answer that is none of the choices is a label of its own.
    unparsed = _metrics(task, examples, ["?", *texts[1:]])
    assert unparsed["mcc"] == pytest.approx(max(0.0, matthews_corrcoef(golds, [2, *answers[1:]])))
    assert unparsed["acc"] == pytest.approx(np.mean(np.array([2, *answers[1:]]) == golds))


@pytest.mark.parametrize("seed", range(6))
def test_counts_of_three_labels_give_scikit_learns_coefficient(seed: int) -> None:
    chance = np.random.default_rng(seed)
    golds = chance.integers(0, 3, 40)
    answers = np.where(chance.random(40) < 0.6, golds, chance.integers(0, 4, 40))
    matrix = np.zeros((3, 4))
    np.add.at(matrix, (golds, answers), 1)
    assert matthews(matrix) == pytest.approx(max(0.0, matthews_corrcoef(golds, answers)))
    stacked = matthews(np.stack([matrix, np.zeros((3, 4))]))
    assert stacked[1] == 0.0


def test_f1_of_no_counts_is_zero() -> None:
    assert f1_of_counts(np.array([[2.0, 1.0, 3.0], [0.0, 0.0, 0.0]])).tolist() == [pytest.approx(4 / 8), 0.0]


def test_a_generated_text_ends_at_a_stop_string_and_goes_through_the_filter(folder: TaskFolder) -> None:
    answer = {
        "name": "answer",
        "filter": [{"function": "regex", "regex_pattern": "is (\\w+)"}, {"function": "take_first"}],
    }
    folder.text("a", filter_list=[answer])
    task, examples = _opened(folder, "a")
    colours = [json.loads(e.document or "")["colour"] for e in examples]
    right = [f"it is {colour}! is blue" for colour in colours]
    assert _metrics(task, examples, right)["exact_match"] == 1.0
    late = [f"oh! it is {colour}" for colour in colours]
    judged = judge(task, "official", examples, late)
    assert judged.n_unparsed == 12
    assert judged.statistics.per_unit[:, 0].sum() == 0.0


def test_any_of_several_targets_is_right(folder: TaskFolder) -> None:
    folder.text("a", doc_to_target="{{[colour, 'any']}}")
    task, examples = _opened(folder, "a")
    assert examples[0].target == " red"
    assert _metrics(task, examples, [" any"] * 12)["exact_match"] == 1.0
    assert _metrics(task, examples, [" none"] * 12)["exact_match"] == 0.0


def test_a_tasks_own_function_scores_each_document_and_may_leave_a_metric_out(folder: TaskFolder) -> None:
    code = (
        "def score(doc, results):\n"
        "    half = {'half': 0.5 if results[0].strip() == doc['colour'] else 0.0}\n"
        "    return {**half, **({'reds': 1.0} if doc['colour'] == 'red' else {})}\n"
    )
    (folder.path / "own.py").write_text(code, encoding="utf-8")
    folder.text("a", metric_list=[{"metric": name, **MEAN} for name in ("half", "reds")])
    file = folder.path / "a.yaml"
    file.write_text(file.read_text()[:-1] + ', "process_results": !function own.score}', encoding="utf-8")
    task, examples = _opened(folder, "a")
    found = _metrics(task, examples, [e.target for e in examples[:6]] + ["?"] * 6)
    assert found == {"half": pytest.approx(0.25), "reds": pytest.approx(1.0)}


def test_a_parser_takes_any_text(folder: TaskFolder) -> None:
    folder.choices("a")
    folder.text("b")
    for name in ("a", "b"):
        task, examples = _opened(folder, name)
        for text in ("", "\x00", "{" * 5000, "é" * 2000, '{"log_likelihoods": 3}'):
            answer = task.protocols["official"].parse(text, examples[0])
            assert (answer is NOT_PARSED) == (name == "a")
