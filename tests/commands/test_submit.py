"""``harness submit``: the zip for a competition, checked against its test split."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
SAMPLE = Path(__file__).parents[2] / "tasks" / "sample" / "promptcblue"


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def lines(content: bytes | str) -> list[dict[str, Any]]:
    text = content.decode() if isinstance(content, bytes) else content
    return [json.loads(line) for line in text.split("\n") if line]


def content(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as read:
        return {name: read.read(name) for name in read.namelist()}


@pytest.fixture
def nearest(harness: Command, made_once: Command, tmp_path: Path) -> Path:
    """A finished run on all tasks, with predictions for two test examples of each."""

    def make() -> None:
        command = ("run", "--suite", "promptcblue", "--method", "nearest", "--out", tmp_path / "runs")
        done = harness(*command, "--set", "eval.per_task=2")
        assert done.status == 0, done.err

    return only(made_once("nearest on two examples", tmp_path / "runs", make))


@pytest.fixture
def blank_test(tmp_path: Path) -> Path:
    """A folder with the test split as a competition publishes it: without targets."""
    folder = tmp_path / "competition"
    folder.mkdir()
    examples = lines((SAMPLE / "test.json").read_text(encoding="utf-8"))[:60]
    text = "".join(json.dumps({**e, "target": ""}, ensure_ascii=False) + "\n" for e in examples)
    (folder / "test.json").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.long
def test_the_zip_has_a_line_for_each_test_example_and_the_script_parses_them(
    nearest: Path, harness: Command, blank_test: Path, tmp_path: Path
) -> None:
    out = tmp_path / "test_predictions.zip"
    done = harness("submit", nearest, "--data", blank_test, "--out", out)
    assert done.status == 0, done.err
    files = content(out)
    assert list(files) == ["test_predictions.json", "post_generate_process.py"]
    given = lines((blank_test / "test.json").read_text(encoding="utf-8"))
    found = lines(files["test_predictions.json"])
    assert [{**line, "target": ""} for line in found] == given
    assert all(line["target"] for line in found)
    own = {p["id"]: p["text"] for path in nearest.glob("predictions/*") for p in lines(path.read_text())}
    n_own = sum(line["sample_id"] in own for line in found)
    assert 0 < n_own < 60
    assert f"(60 examples: {n_own} from the run, {60 - n_own} generated)" in done.out
    assert all(line["target"] == own.get(line["sample_id"], line["target"]) for line in found)
    predicted = harness("predict", nearest, blank_test / "test.json", "--out", tmp_path / "p.jsonl")
    assert predicted.status == 0
    texts = {line["id"]: line["prediction"] for line in lines((tmp_path / "p.jsonl").read_text())}
    assert texts == {line["sample_id"]: line["target"] for line in found}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-I", "-S", "post_generate_process.py", "test_predictions.json", "results.json"]
    subprocess.run(command, cwd=tmp_path, check=True)
    answers = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {a["sample_id"] for of_task in answers.values() for a in of_task} == {e["sample_id"] for e in given}


@pytest.mark.long
def test_the_same_command_again_does_nothing_and_a_new_zip_has_the_same_bytes(
    nearest: Path, harness: Command, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    value = harness("submit", nearest, "--out", first, "--json").json
    assert value == {
        "out": str(first), "n": 384, "n_stored": 32, "n_generated": 352, "n_blank": 0, "fresh": True
    }  # fmt: skip
    again = harness("submit", nearest, "--out", first)
    assert (again.status, "already complete" in again.err) == (0, True)
    assert harness("evaluate", nearest, "--set", "eval.per_task=none").status == 0
    value = harness("submit", nearest, "--out", second, "--json").json
    assert (value["n_stored"], value["n_generated"]) == (384, 0), "the evaluation has all of them"
    assert second.read_bytes() == first.read_bytes()
    score = harness(
        "run", "--suite", "promptcblue", "--method", "majority", "--tasks", "CHIP-STS", "--out", tmp_path / "o"
    )
    assert score.status == 0
    other = harness("submit", only(tmp_path / "o"), "--blank", "--out", first)
    assert (other.status, "predictions with another run" in other.err) == (2, True)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.long
def test_an_interrupted_submission_resumes(
    nearest: Path, harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.pipeline.predict_file as module
    from harness.generation.predictions import PredictionWriter

    monkeypatch.setattr(module, "CHUNK", 50)
    write, n_writes = PredictionWriter.write, []

    def interrupted(self: Any, task: str, completions: Any) -> None:
        write(self, task, completions)
        n_writes.append(task)
        if len(n_writes) == 30:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(PredictionWriter, "write", interrupted)
        stopped = harness("submit", nearest, "--out", tmp_path / "a.zip")
    assert (stopped.status, (tmp_path / "a.zip").exists()) == (130, False)
    resumed = harness("submit", nearest, "--out", tmp_path / "a.zip")
    assert (resumed.status, "predictions are in" in resumed.err) == (0, True), resumed.err
    assert harness("submit", nearest, "--out", tmp_path / "b.zip").status == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_tasks_that_the_run_does_not_have_are_an_error_or_blank(
    harness: Command, blank_test: Path, tmp_path: Path
) -> None:
    text = {"input": "决策树", "target": "", "answer_choices": None, "task_type": "tree", "task_dataset": "Text2DT"}
    with (blank_test / "test.json").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**text, "sample_id": "test-tree"}, ensure_ascii=False) + "\n")
    command = ("run", "--suite", "promptcblue", "--method", "majority", "--tasks", "CHIP-STS,CHIP-CTC")
    assert harness(*command, "--out", tmp_path / "runs").status == 0
    run, out = only(tmp_path / "runs"), tmp_path / "a.zip"
    refused = harness("submit", run, "--data", blank_test, "--out", out)
    assert refused.status == 1
    assert "Text2DT 1" in refused.err
    assert "add --blank" in refused.err
    assert not list(tmp_path.glob("a.zip*"))
    done = harness("submit", run, "--data", blank_test, "--out", out, "--blank")
    assert done.status == 0, done.err
    assert "Text2DT 1" in done.err
    found = lines(content(out)["test_predictions.json"])
    own = {"CHIP-STS", "CHIP-CTC"}
    assert all(bool(line["target"]) == (line["task_dataset"] in own) for line in found)
    assert found[-1]["sample_id"] == "test-tree"


def test_what_cannot_be_submitted_names_the_remedy(
    nearest: Path, toy_run: Command, harness: Command, blank_test: Path, tmp_path: Path
) -> None:
    name = harness("submit", nearest, "--out", tmp_path / "a.json")
    assert (name.status, "Give a name that ends in .zip" in name.err) == (2, True)
    (tmp_path / "mine.zip").write_bytes(b"PK")
    mine = harness("submit", nearest, "--out", tmp_path / "mine.zip")
    assert (mine.status, "the file exists" in mine.err) == (2, True)
    (tmp_path / "no_test").mkdir()
    (tmp_path / "no_test" / "tset.json").write_text("{}\n")
    nothing = harness("submit", nearest, "--data", tmp_path / "no_test", "--out", tmp_path / "b.zip")
    assert (nothing.status, "the folder has no test.json" in nothing.err, "tset.json" in nothing.err) == (1, True, True)
    twice = lines((blank_test / "test.json").read_text(encoding="utf-8"))[:1] * 2
    (blank_test / "test.json").write_text("".join(json.dumps(e) + "\n" for e in twice))
    repeated = harness("submit", nearest, "--data", blank_test, "--out", tmp_path / "b.zip")
    assert (repeated.status, "line 2: sample_id" in repeated.err, "already used in line 1" in repeated.err) == (
        1,
        True,
        True,
    )
    shutil.rmtree(tmp_path / "runs")
    assert toy_run("--method", "majority").status == 0
    toys = harness("submit", only(tmp_path / "runs"), "--out", tmp_path / "c.zip")
    assert toys.status == 2
    assert "suite 'toys' has no form of a submission. Suites that have one: promptcblue." in toys.err


def test_an_adapter_above_the_benchmarks_limit_is_a_warning(harness: Command, tmp_path: Path) -> None:
    keys = ("--set", "train.steps=1", "--set", "eval.per_task=1", "--set", "eval.max_new_tokens=2")
    command = ("run", "--suite", "promptcblue", "--method", "lora_all", "--tasks", "CHIP-STS", *keys)
    assert harness(*command, "--out", tmp_path / "runs").status == 0
    data = tmp_path / "data"
    data.mkdir()
    examples = [e for e in lines((SAMPLE / "test.json").read_text(encoding="utf-8")) if e["task_dataset"] == "CHIP-STS"]
    (data / "test.json").write_text("".join(json.dumps(e) + "\n" for e in examples[:3]))
    done = harness("submit", only(tmp_path / "runs"), "--data", data, "--out", tmp_path / "a.zip")
    assert done.status == 0, done.err
    assert "at most 1 % of the base model's parameters" in done.err


def test_a_run_whose_data_have_moved_is_found_again(harness: Command, blank_test: Path, tmp_path: Path) -> None:
    shutil.copytree(SAMPLE, tmp_path / "data")
    command = ("run", "--suite", "promptcblue", "--method", "majority", "--data", tmp_path / "data")
    assert harness(*command, "--out", tmp_path / "runs").status == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    again = ("submit", only(tmp_path / "runs"), "--data", blank_test, "--out", tmp_path / "a.zip")
    gone = harness(*again)
    assert (gone.status, "give their new location with --run-data" in gone.err) == (1, True), gone.err
    shutil.copytree(tmp_path / "moved", tmp_path / "other")
    dev = (SAMPLE / "dev.json").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "other" / "dev.json").write_text("".join(dev[1:]), encoding="utf-8")
    other = harness(*again, "--run-data", tmp_path / "other")
    assert (other.status, "give the right --run-data" in other.err) == (1, True), other.err
    assert harness(*again, "--run-data", tmp_path / "moved").status == 0
