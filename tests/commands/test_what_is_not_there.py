"""Data, models and packages that are elsewhere by now: each is one line that names the place and the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.fixture
def data(plugin: Path, tmp_path: Path) -> Path:
    """The data of the toys, in a folder that a test may change."""
    return Path(shutil.copytree(plugin / "toy_plugin" / "data", tmp_path / "data"))


def error_of(failed: Any) -> str:
    """The one line of a command that failed."""
    assert failed.status != 0
    (line,) = [line for line in failed.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in failed.err
    return str(line)


def test_data_that_were_moved_away_and_data_that_changed_are_different_errors(
    toy_run: Command, harness: Command, data: Path, tmp_path: Path
) -> None:
    run = toy_run("--method", "majority", "--data", data, "--json").json["directory"]
    data.rename(tmp_path / "moved")
    gone = error_of(harness("score", run))
    assert f"were in {data}, which no longer exists" in gone
    assert "give their new location with --data" in gone
    assert harness("score", run, "--data", tmp_path / "moved").status == 0
    with (tmp_path / "moved" / "test.jsonl").open("a") as file:
        file.write("\n")
    changed = error_of(harness("score", run, "--data", tmp_path / "moved"))
    assert "is not the data that" in changed
    assert "test.jsonl differ" in changed


def test_without_enough_examples_for_a_mean_each_command_says_so(
    toy_run: Command, harness: Command, data: Path, tmp_path: Path
) -> None:
    runs = []
    for method in ("majority", "nearest"):
        done = toy_run("--method", method, "--data", data)
        assert "no mean, because every task has fewer than 50 independent examples" in done.out
        runs += (tmp_path / "runs").glob(f"{method}-*")
    compared = harness("compare", runs[0], "--with", runs[1])
    assert "no mean, because every task has fewer than 50 examples" in compared.out
    assert "mean of 0" not in compared.out
    board = harness("leaderboard", "toys", "--out", tmp_path / "runs")
    assert "The table has no mean, because every task has fewer than 50 test examples" in board.out


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_git_lfs_pointer_in_the_place_of_a_models_file_is_named(
    harness: Command, toy_run: Command, toy_model: Path, tmp_path: Path, name: str
) -> None:
    model = Path(shutil.copytree(toy_model, tmp_path / "model"))
    (model / name).write_text(POINTER)
    commands = (toy_run("--method", "lora_all", "--model", model), harness("validate", "toys", "--model", model))
    for failed in commands:
        line = error_of(failed)
        assert f"{model / name} is a Git LFS pointer" in line
        assert "git lfs pull" in line


def test_a_git_lfs_pointer_in_the_place_of_a_gguf_file_is_named(toy_run: Command, tmp_path: Path) -> None:
    (tmp_path / "toy.gguf").write_text(POINTER)
    assert f"{tmp_path / 'toy.gguf'} is a Git LFS pointer" in error_of(
        toy_run("--method", "lora_all", "--model", tmp_path / "toy.gguf")
    )


def test_a_task_of_lm_eval_whose_data_are_not_on_this_disk_says_how_to_fetch_them(
    toy_run: Command, harness: Command, tmp_path: Path, hf_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "absent.yaml").write_text(
        "task: absent\ndataset_path: nobody/absent\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\nmetric_list:\n  - metric: exact_match\n"
    )
    run = toy_run("--method", "lora_all", "--json").json["directory"]
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = error_of(harness("lm-eval", run, "--tasks", "absent", "--include-path", tmp_path))
    assert "the data of lm-eval's absent are not on this disk" in line
    assert "without HF_HUB_OFFLINE" in line


def test_a_suite_without_a_version_is_refused_with_the_line_to_add(
    harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "unversioned-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: unversioned\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[harness.suites]\nunversioned = unversioned:Unversioned\n")
    (tmp_path / "unversioned.py").write_text(
        "from dataclasses import dataclass\nfrom toy_plugin.suite import Toys\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Unversioned(Toys):\n"
        "    name = 'unversioned'\n    version = None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    line = error_of(harness("run", "--suite", "unversioned", "--method", "majority"))
    assert "suite 'unversioned' has no version" in line
    assert "version: ClassVar[int] = 1" in line


@pytest.mark.parametrize("name", ["train.json.gz", "Train.JSON", "train.txt"])
def test_a_file_that_is_named_after_a_missing_split_is_a_flaw(harness: Command, tmp_path: Path, name: str) -> None:
    example = {"input": "x?", "target": "是的", "answer_choices": ["是的", "不是"], "task_dataset": "CHIP-STS"}
    for file, number in ((name, 0), ("test.json", 1)):
        line = json.dumps({**example, "input": f"{number}?", "sample_id": str(number)}, ensure_ascii=False)
        (tmp_path / file).write_text(line + "\n", encoding="utf-8")
    report = harness("validate", "promptcblue", "--data", tmp_path)
    assert report.status == 1
    assert f"{name} in {tmp_path} is not read. The train split must be a plain file train.json" in report.out
    assert "No flaws found" not in report.out
    (tmp_path / name).unlink()
    without = harness("validate", "promptcblue", "--data", tmp_path)
    assert without.status == 0
    assert "there is no train and no dev split. The folder contains test.json." in without.out
    assert "No flaws found in test." in without.out


def test_a_file_of_parsed_answers_is_not_called_broken(harness: Command, tmp_path: Path) -> None:
    example = {"input": "x?", "target": "是的", "answer_choices": ["是的", "不是"], "task_dataset": "CHIP-STS"}
    (tmp_path / "test.json").write_text(json.dumps({**example, "sample_id": "1"}), encoding="utf-8")
    answers = {"CHIP-STS": [{"sample_id": "1", "answer": "是的"}]}
    for indent in (None, 2):
        (tmp_path / "results.json").write_text(json.dumps(answers, indent=indent), encoding="utf-8")
        line = error_of(harness("score", tmp_path / "results.json", "--suite", "promptcblue", "--gold", tmp_path))
        assert "a list of parsed answers for each task ('CHIP-STS', …)" in line
        assert "JSON lines with sample_id and target" in line
