"""A suite is a file: written, checked, run, compared and opened again through the installed command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Harness = Callable[..., Any]


@pytest.fixture
def suite(harness: Harness, tmp_path: Path, hf_cache: Path) -> Path:
    """The example that ``harness new suite`` writes."""
    done = harness("new", "suite", tmp_path / "mine")
    assert done.status == 0, done.err
    assert "harness validate" in done.out
    return tmp_path / "mine"


@pytest.fixture
def nearest(harness: Harness, suite: Path, tmp_path: Path) -> Harness:
    """``nearest(...)`` runs the baseline with a suite's file and returns the run's JSON."""

    def call(given: Path = suite) -> Any:
        done = harness("run", "--suite", given, "--method", "nearest", "--out", tmp_path / "runs", "--json")
        assert done.status == 0, done.err
        return done.json

    return call


def test_the_mean_of_a_suite_with_one_task_is_of_one_task(harness: Harness, suite: Path, tmp_path: Path) -> None:
    file = suite / "suite.toml"
    file.write_text(file.read_text().partition("[task.orders]")[0], encoding="utf-8")
    done = harness("run", "--suite", suite, "--method", "majority", "--out", tmp_path / "runs")
    assert done.status == 0, done.err
    assert "\nmean of 1 task: " in done.out


def test_a_new_suite_is_valid_runs_and_has_a_leaderboard(
    harness: Harness, suite: Path, nearest: Harness, tmp_path: Path
) -> None:
    checked = harness("validate", suite)
    assert checked.status == 0, checked.err
    assert "No flaws found." in checked.out
    assert "macro_f1" in harness("list", suite / "suite.toml").out
    result = nearest()
    spec = result["record"]["spec"]
    assert (spec["suite"]["name"], spec["suite"]["reader"], spec["data"]["sample"]) == ("mine", "suite-file", False)
    assert set(result["scores"]["official"]["tasks"]) == {"sentiment", "orders"}
    assert result["scores"]["official"]["mean"] > 0.5
    for name in (suite, suite / "suite.toml", "mine"):  # by folder, by file, and by the name that the runs recorded
        board = harness("leaderboard", name, "--out", tmp_path / "runs")
        assert board.status == 0, board.err
        assert "| nearest†" in board.out


def test_a_trained_run_is_evaluated_verified_and_exported(
    harness: Harness, suite: Path, toy_model: Path, tmp_path: Path
) -> None:
    quick = ["train.steps=2", "eval.max_new_tokens=2", "eval.per_task=2"]
    keys = [word for key in quick for word in ("--set", key)]
    out = ["--out", tmp_path / "runs", "--json"]
    done = harness("run", "--suite", suite, "--method", "lora_all", "--model", toy_model, *keys, *out)
    assert done.status == 0, done.err
    run = done.json["directory"]
    again = harness("evaluate", run, "--split", "dev")
    assert again.status == 0, again.err
    checks = harness("verify", run)
    assert checks.status == 0, checks.err
    assert "scores: same" in checks.out
    exported = harness("export", run, "--task", "orders", "--out", tmp_path / "lora")
    assert exported.status == 0, exported.err


def test_a_moved_folder_and_an_edited_comment_keep_the_run(suite: Path, nearest: Harness, tmp_path: Path) -> None:
    first = nearest()["record"]["run_id"]
    file = suite / "suite.toml"
    file.write_text("# a comment\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    moved = shutil.move(suite, tmp_path / "elsewhere")
    assert nearest(Path(moved) / "suite.toml")["record"]["run_id"] == first


def test_an_edited_prompt_or_example_is_another_run(suite: Path, nearest: Harness) -> None:
    first = nearest()["record"]["run_id"]
    file = suite / "suite.toml"
    file.write_text(file.read_text(encoding="utf-8").replace("Is this review", "Is it"), encoding="utf-8")
    second = nearest()["record"]["run_id"]
    data = suite / "orders.csv"
    data.write_text(data.read_text(encoding="utf-8") + 'Tea for nine.,"tea"\n', encoding="utf-8")
    assert len({first, second, nearest()["record"]["run_id"]}) == 3


def test_two_definitions_of_one_name_have_tables_with_different_titles(
    harness: Harness, suite: Path, nearest: Harness, tmp_path: Path
) -> None:
    nearest()
    file = suite / "suite.toml"
    file.write_text(file.read_text(encoding="utf-8").replace("Is this review", "Is it"), encoding="utf-8")
    nearest()
    page = harness("leaderboard", suite.name, "--out", tmp_path / "runs").out
    first, second = (line for line in page.splitlines() if line.startswith("## "))
    assert first != second
    assert "definition " in first


def test_an_unknown_task_of_a_file_whose_suite_has_another_name_names_no_command_that_fails(
    harness: Harness, suite: Path
) -> None:
    file = suite / "suite.toml"
    file.write_text(file.read_text(encoding="utf-8").replace('name = "mine"', 'name = "shop"'), encoding="utf-8")
    wrong = harness("run", "--suite", suite, "--method", "nearest", "--tasks", "order")
    assert wrong.status == 2
    assert "unknown task 'order'. Did you mean 'orders'?" in wrong.err
    assert "harness list" not in wrong.err


def test_a_finished_run_is_opened_with_its_own_definition_and_notices_other_data(
    harness: Harness, suite: Path, nearest: Harness, tmp_path: Path
) -> None:
    run = nearest()["directory"]
    moved = Path(shutil.move(suite, tmp_path / "elsewhere"))
    assert harness("score", run).status == 1  # the data are not where they were
    (moved / "suite.toml").write_text("not a suite", encoding="utf-8")
    assert harness("score", run, "--data", moved).status == 0
    assert harness("evaluate", run, "--split", "dev", "--data", moved).status == 0
    with (moved / "orders.csv").open("a", encoding="utf-8") as file:
        file.write('Tea for nine.,"tea"\n')
    other = harness("evaluate", run, "--data", moved)
    assert other.status == 1
    assert "is not the data that" in other.err


@pytest.mark.long
def test_a_leaderboard_names_a_suite_relative_to_its_own_file(
    harness: Harness, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = tmp_path / "boards" / "mine-baselines.toml"
    board.parent.mkdir()
    board.write_text('suite = "../mine/suite.toml"\nbaselines = ["majority"]\nseeds = [0]\n', encoding="utf-8")
    monkeypatch.chdir(board.parent)
    done = harness("sweep", board, "--out", tmp_path / "runs")
    assert done.status == 0, done.err
    assert "| majority†" in board.with_suffix(".md").read_text(encoding="utf-8")


def test_predictions_of_another_program_are_scored_on_the_data_of_the_file(
    harness: Harness, suite: Path, nearest: Harness, tmp_path: Path
) -> None:
    result = nearest()
    lines = [
        json.loads(line)
        for file in Path(result["directory"], "predictions").glob("*.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps({"id": p["id"], "target": p["text"]}) + "\n" for p in lines), encoding="utf-8")
    scored = harness("score", file, "--suite", suite, "--json")
    assert scored.status == 0, scored.err
    assert scored.json["scores"]["official"]["mean"] == result["scores"]["official"]["mean"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "minee.toml"], ["minee.toml", "no such file", "harness new suite"]),
        (["--suite", "runs"], ["the folder has no suite.toml"]),
        (["--suite", "mine/orders.csv"], ["orders.csv", ".toml"]),
        (["--suite", "suite-file"], ["reads its tasks from a file", "harness new suite"]),
        (["--suite", "mine", "--set", "suite.name=x"], ["suite.name", "has no options", "suite.toml"]),
        (["--suite", "mine", "--tasks", "order"], ["unknown task 'order'", "'orders'"]),
        (["--suite", "mine", "--data", "nowhere"], ["nowhere", "not a folder"]),
    ],
)
def test_a_wrong_suite_or_option_is_an_error_with_a_remedy(
    harness: Harness, suite: Path, arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(suite.parent)
    (suite.parent / "runs").mkdir()
    done = harness("run", "--method", "majority", *arguments)
    assert done.status in (1, 2)
    assert len(done.err.strip().splitlines()) == 1
    for word in words:
        assert word in done.err


def test_a_suite_may_not_have_the_name_of_an_installed_one(harness: Harness, suite: Path) -> None:
    file = suite / "suite.toml"
    file.write_text(file.read_text(encoding="utf-8").replace('name = "mine"', 'name = "toys"'), encoding="utf-8")
    done = harness("validate", suite)
    assert done.status == 2
    assert "'toys' is an installed suite" in done.err


def test_a_new_suite_does_not_overwrite_a_folder(harness: Harness, suite: Path) -> None:
    done = harness("new", "suite", suite)
    assert done.status == 2
    assert "exists already" in done.err
