"""Super-NaturalInstructions through the installed command: on the embedded sample, and on task files of the test."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_instructions import task_content, write_tasks

Harness = Callable[..., Any]
HELD_OUT = ("task9007_toy_animal_analogy", "task9008_toy_record_to_text")


@pytest.fixture
def majority(harness: Harness, tmp_path: Path, hf_cache: Path) -> Harness:
    """``majority(...)`` runs the baseline and returns the run's JSON."""

    def call(*arguments: Any) -> Any:
        done = harness(
            "run", "--suite", "superni", "--method", "majority", "--out", tmp_path / "runs", "--json", *arguments
        )
        assert done.status == 0, done.err
        return done.json

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    names = ["task1_toy", "task2_toy", "task3_toy"]
    tasks = {name: task_content(int(name[4]), n=60) for name in names}
    return write_tasks(tmp_path / "ni", tasks, train=names[:2], test=names[2:])


def test_the_sample_runs_without_data_and_without_a_model(harness: Harness, majority: Harness, tmp_path: Path) -> None:
    result = majority()
    spec, tasks = result["record"]["spec"], result["scores"]["tk"]["tasks"]
    assert spec["data"]["sample"]
    assert tuple(spec["suite"]["fields"]["held_out"]) == HELD_OUT
    assert spec["suite"]["fields"]["categories"][HELD_OUT[0]] == "Word Analogy"
    assert {name: tasks[name]["headline"] for name in HELD_OUT} == dict(
        zip(HELD_OUT, ("exact_match", "rougeL"), strict=True)
    )
    assert set(tasks[HELD_OUT[0]]["metrics"]) == {"exact_match", "rouge1", "rougeL"}
    assert all(tasks[name]["n_train"] == 0 for name in HELD_OUT)
    assert 0 < result["scores"]["tk"]["mean"] < 1
    assert majority()["directory"] == result["directory"]
    held_out = result["scores"]["tk_held_out"]
    assert tuple(held_out["tasks"]) == tuple(held_out["mean_of"]) == HELD_OUT
    assert held_out["tasks"] == {name: tasks[name] for name in HELD_OUT}
    assert "no runs for 'superni'" in harness("leaderboard", "superni", "--out", tmp_path / "none").err
    assert "| majority†" in harness("leaderboard", "superni", "--out", tmp_path / "runs").out
    board = harness("leaderboard", "superni", "--out", tmp_path / "runs", "--protocol", "tk_held_out").out
    assert f"The mean is over 2 tasks: {', '.join(HELD_OUT)}" in board
    assert "scores: same" in harness("verify", result["directory"]).out


def test_a_method_that_needs_a_model_says_what_to_give(harness: Harness, tmp_path: Path, hf_cache: Path) -> None:
    done = harness("run", "--suite", "superni", "--method", "lora_all", "--out", tmp_path)
    assert done.status == 2
    assert "--model is missing: suite superni has no default model. Give a pretrained one" in done.err


def test_the_sample_has_no_flaws_and_is_listed_with_its_categories(harness: Harness, hf_cache: Path) -> None:
    checked = harness("validate", "superni")
    assert checked.status == 0, checked.out + checked.err
    assert "No flaws found." in checked.out
    listed = harness("list", "superni").out
    few = harness("validate", "superni", "--set", "suite.n_train_tasks=1", "--set", "suite.n_test_tasks=0", "--json")
    assert len({task["task"] for task in few.json["tasks"]}) == 1
    assert "suite.n_train_tasks" in listed
    assert "Answerability Classification" in listed
    assert re.search(r"suite.definition +true .*\n(?:.*\n)*suite.explanation +false ", listed)


def test_a_finished_run_needs_the_task_files_and_no_lists(
    harness: Harness, majority: Harness, data: Path, tmp_path: Path
) -> None:
    run = majority("--data", data)
    assert list(run["scores"]["tk"]["tasks"]) == ["task1_toy", "task2_toy", "task3_toy"]
    moved = Path(shutil.move(data, tmp_path / "elsewhere"))
    shutil.rmtree(moved / "splits")
    again = harness("score", run["directory"], "--data", moved, "--json")
    assert again.status == 0, again.err
    assert again.json["scores"] == run["scores"]
    (moved / "tasks" / "task3_toy.json").write_text(json.dumps(task_content(3, n=59)), encoding="utf-8")
    other = harness("score", run["directory"], "--data", moved)
    assert other.status == 1
    assert "task_files differ" in other.err


def test_options_are_part_of_the_run(majority: Harness, data: Path) -> None:
    runs = [
        majority("--data", data),
        majority("--data", data, "--set", "suite.only=task1_toy,task2_toy"),
        majority("--data", data, "--set", "suite.positive=1"),
        majority("--data", data, "--set", "suite.n_train=none", "--set", "suite.n_test=5"),
    ]
    assert len({run["record"]["run_id"] for run in runs}) == 4
    assert list(runs[1]["scores"]["tk"]["tasks"]) == ["task1_toy", "task2_toy"]
    assert runs[3]["scores"]["tk"]["tasks"]["task3_toy"]["n"] == 5


def test_predictions_are_scored_by_the_best_reference(
    harness: Harness, data: Path, tmp_path: Path, hf_cache: Path
) -> None:
    """Each instance has two references: half of the predictions are the second one, the others have nothing right."""
    file = tmp_path / "predictions.jsonl"
    lines = [{"id": f"task3-{i}", "target": str(i) if i < 30 else "else"} for i in range(60)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    done = harness("score", file, "--suite", "superni", "--gold", data, "--tasks", "task3_toy", "--json")
    assert done.status == 0, done.err
    assert done.json["scores"]["tk"]["tasks"]["task3_toy"]["metrics"] == {
        "exact_match": 0.5,
        "rouge1": 0.5,
        "rougeL": 0.5,
    }


@pytest.fixture
def trained(harness: Harness, toy_model: Path, tmp_path: Path, hf_cache: Path) -> Harness:
    """``trained(method)`` runs a method on two tasks and a held-out one, and returns the run's JSON."""

    def call(method: str) -> Any:
        quick = ["train.steps=2", "train.batch_size=2", "train.max_length=96", "train.lr=0.1", "suite.positive=0"]
        quick += ["eval.max_new_tokens=4", "eval.per_task=2"]
        quick += [f"suite.only=task9001_toy_colour_entailment,task9006_toy_last_location,{HELD_OUT[0]}"]
        keys = [word for key in quick for word in ("--set", key)]
        out = ["--out", tmp_path / "runs", "--json"]
        done = harness("run", "--suite", "superni", "--method", method, "--model", toy_model, *keys, *out)
        assert done.status == 0, done.err
        return done.json

    return call


def predicted(run: Any, task: str) -> list[str]:
    path = Path(run["directory"], "predictions", f"{task}.jsonl")
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora_all", "c_poly", "lorahub", "moa"])
def test_held_out_tasks_are_predicted_by_a_trained_method(harness: Harness, trained: Harness, method: str) -> None:
    run = trained(method)
    task = run["scores"]["tk_held_out"]["tasks"][HELD_OUT[0]]
    assert (task["n"], task["n_train"]) == (2, 0)
    assert task["value"] is not None
    assert harness("evaluate", run["directory"], "--split", "dev").status == 0


def test_without_shared_parts_a_held_out_task_is_answered_by_the_base_model(trained: Harness) -> None:
    base, alone, shared = (trained(method) for method in ("no_finetune", "lora_single", "lora_all"))
    assert predicted(alone, HELD_OUT[0]) == predicted(base, HELD_OUT[0]) != predicted(shared, HELD_OUT[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], ["nowhere: no such folder or file", "git clone"]),
        (["--set", "suite.only=task9001_toy"], ["suite.only", "'task9001_toy'", "task9001_toy_colour_entailment"]),
        (["--set", "suite.split=other"], ["unknown suite.split 'other'", "default"]),
        (["--set", "suite.n_train_tasks=7"], ["suite.n_train_tasks = 7", "the list has 6"]),
        (["--set", "suite.n_dev=0"], ["suite.n_dev = 0", "at least 1"]),
        (["--set", "suite.kinds=a"], ["suite.kinds"]),
        (["--tasks", "task9001"], ["unknown task 'task9001'"]),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(
    harness: Harness, tmp_path: Path, hf_cache: Path, arguments: list[str], words: list[str]
) -> None:
    done = harness("run", "--suite", "superni", "--method", "majority", "--out", tmp_path, *arguments)
    assert done.status in (1, 2)
    for word in words:
        assert word in done.err, done.err
