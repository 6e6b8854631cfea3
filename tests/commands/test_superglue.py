"""SuperGLUE through the installed command, on its sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.superglue.suite import SuperGLUE

Command = Callable[..., Any]
TASKS = ["boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"]


@pytest.fixture
def run(harness: Command, hf_cache: Path, tmp_path: Path) -> Command:
    def call(*arguments: Any) -> Any:
        return harness("run", "--suite", "superglue", "--out", tmp_path / "runs", *arguments)

    return call


def test_a_baseline_scores_every_task_on_the_sample_without_data_and_model(run: Command) -> None:
    done = run("--method", "majority", "--json")
    assert done.status == 0, done.err
    table = done.json["scores"]["official"]
    assert list(table["tasks"]) == table["mean_of"] == TASKS
    assert [table["tasks"][task]["headline"] for task in ("cb", "multirc", "record", "wsc")] == [
        "acc_and_f1", "f1a_and_em", "f1_and_em", "accuracy",
    ]  # fmt: skip
    assert (table["tasks"]["multirc"]["n"], table["tasks"]["multirc"]["n_units"]) == (40, 8)
    assert table["tasks"]["boolq"]["n_units"] is None
    assert done.json["scores"]["accuracy"]["tasks"]["record"]["headline"] == "em"


def test_a_table_says_for_which_tasks_the_interval_is_over_passages(run: Command) -> None:
    done = run("--method", "empty", "--tasks", "multirc,boolq")
    assert "multirc: the interval is over groups of examples that belong together (8)" in done.out
    assert "boolq: the interval" not in done.out


@pytest.mark.long
def test_every_format_is_a_run_of_its_own_with_other_prompts(run: Command, tmp_path: Path) -> None:
    names = set()
    for form in ("letters", "t5", "lm-eval"):
        done = run("--method", "nearest", "--set", f"suite.format={form}", "--json")
        assert done.status == 0, done.err
        folder = Path(done.json["directory"])
        names.add(folder.name)
        lines = (folder / "predictions" / "rte.jsonl").read_text(encoding="utf-8").splitlines()
        answers = {"letters": {"A", "B"}, "t5": {"entailment", "not_entailment"}, "lm-eval": {"True", "False"}}
        assert {json.loads(line)["text"] for line in lines} <= answers[form]
        assert done.json["scores"]["official"]["tasks"]["rte"]["n_unparsed"] == 0
    assert len(names) == 3


def test_runs_are_compared_over_passages_and_verified(run: Command, harness: Command, tmp_path: Path) -> None:
    one, two = (Path(run("--method", method, "--json").json["directory"]) for method in ("majority", "nearest"))
    found = harness("compare", one, "--with", two, "--json").json["tasks"]
    assert found["multirc"]["mcnemar"] is None
    assert found["boolq"]["mcnemar"] is not None
    assert found["multirc"]["difference"]["df"] == 8 - 1
    assert found["boolq"]["difference"]["df"] == 24 - 1
    verified = harness("verify", two)
    assert verified.status == 0, verified.out + verified.err


def test_a_method_that_needs_a_model_says_what_to_pass(run: Command) -> None:
    done = run("--method", "lora_all")
    assert (done.status, done.out) == (2, "")
    assert "--model is missing: suite superglue has no default model. Give a pretrained one" in done.err


@pytest.mark.long
def test_a_model_is_trained_and_evaluated_on_every_task(run: Command, toy_model: Path) -> None:
    quick = ["train.steps=2", "train.batch_size=8", "train.max_length=96", "eval.max_new_tokens=4", "eval.per_task=4"]
    settings = [word for key in quick for word in ("--set", key)]
    done = run("--method", "c_poly", "--model", toy_model, *settings, "--json")
    assert done.status == 0, done.err
    tasks = done.json["scores"]["official"]["tasks"]
    assert list(tasks) == TASKS
    assert all(score["n"] <= 4 for score in tasks.values())


def test_validate_takes_the_options_of_a_suite(harness: Command, hf_cache: Path) -> None:
    letters, t5 = (
        harness("validate", "superglue", "--set", f"suite.format={form}", "--json") for form in ("letters", "t5")
    )
    assert (letters.status, t5.status) == (0, 0)
    assert letters.out != t5.out
    wrong = harness("validate", "superglue", "--set", "suite.format=letter")
    assert (wrong.status, wrong.out) == (2, "")
    assert "unknown prompt format of superglue 'letter'. Did you mean 'letters'" in wrong.err
    assert harness("validate", "superglue", "--set", "train.lr=1").status == 2


def test_wrong_data_are_an_error_of_one_line(run: Command, tmp_path: Path) -> None:
    (tmp_path / "data" / "CB").mkdir(parents=True)
    line = {"premise": "A.", "hypothesis": "a", "idx": 0, "label": -1}
    (tmp_path / "data" / "CB" / "val.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    done = run("--method", "empty", "--data", tmp_path / "data")
    assert done.status == 1
    assert "CB/val.jsonl, line 1: the label is withheld (-1)" in done.err
    assert done.err.count("\n") == 1


def test_the_sample_is_where_the_suite_says() -> None:
    sample = SuperGLUE().sample
    assert sample is not None
    assert sorted(path.name.casefold() for path in sample.iterdir()) == TASKS
