"""A run from the command to its record, on toys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


def only(folder: Path) -> Path:
    """The one run of a folder."""
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.mark.long
def test_a_run_leaves_what_the_design_names_and_the_record_last(toy_run: Command, tmp_path: Path) -> None:
    done = toy_run("--method", "cgc_lora")
    assert done.status == 0, done.err
    run = only(tmp_path)
    files = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    for name in ("spec.json", "adapter/adapter.safetensors", "adapter/adapter.json", "train.jsonl", "scores.json"):
        assert name in files
    assert {"predictions/colour.jsonl", "predictions/first.jsonl", "predictions/last.jsonl"} <= files
    assert "failure.json" not in files
    others = [p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name not in ("record.json", ".lock")]
    assert (run / "record.json").stat().st_mtime_ns >= max(others)


def test_json_has_the_promised_shape_and_progress_stays_out_of_it(toy_run: Command) -> None:
    value = toy_run("--method", "lora_all", "--json").json
    assert set(value) == {"directory", "record", "scores"}
    table = value["scores"]["official"]
    assert set(table["tasks"]) == {"colour", "first", "last"} == set(table["mean_of"])
    score = table["tasks"]["colour"]
    for key in ("headline", "value", "ci95", "metrics", "n", "n_train", "n_unparsed", "n_cut"):
        assert key in score
    assert 0 <= score["value"] <= 1
    assert score["n"] == 4
    assert score["n_train"] == 24
    record = value["record"]
    assert record["training"]["steps"] == 4
    assert record["training"]["examples"] == 64
    assert record["parameters"]["stored"] == record["parameters"]["active"] > 0
    assert record["sample"] is True


def test_the_same_command_again_does_nothing_and_says_so(toy_run: Command, tmp_path: Path) -> None:
    toy_run("--method", "lora_all")
    before = {p: p.stat().st_mtime_ns for p in only(tmp_path).rglob("*.json*")}
    again = toy_run("--method", "lora_all")
    assert "already complete" in again.err
    assert {p: p.stat().st_mtime_ns for p in only(tmp_path).rglob("*.json*")} == before


@pytest.mark.long
def test_runtime_keys_do_not_make_another_run_but_a_learning_rate_does(toy_run: Command, tmp_path: Path) -> None:
    toy_run("--method", "lora_all")
    toy_run("--method", "lora_all", "--set", "train.micro_tokens=64")
    only(tmp_path)
    toy_run("--method", "lora_all", "--set", "train.lr=0.5e-3")
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize("method", ["majority", "nearest", "no_finetune", "lora_single"])
def test_every_kind_of_method_leaves_predictions_scores_and_a_record(
    toy_run: Command, tmp_path: Path, method: str
) -> None:
    value = toy_run("--method", method, "--json").json
    run, trained = only(tmp_path), method == "lora_single"
    assert json.loads((run / "record.json").read_text())["run_id"] == value["record"]["run_id"]
    assert value["record"]["spec"]["method"]["name"] == method
    assert (value["record"]["training"] is not None) == trained
    assert (run / "adapter").exists() == trained
    assert value["scores"]["official"]["mean"] is not None
    for task, score in value["scores"]["official"]["tasks"].items():
        predictions = [json.loads(x) for x in (run / "predictions" / f"{task}.jsonl").read_text().splitlines()]
        assert len({p["id"] for p in predictions}) == len(predictions) == score["n"] == 4


@pytest.mark.long
@pytest.mark.parametrize("method", ["no_finetune", "lora_all", "lora_single", "cgc_lora", "moe_lora", "c_poly", "moa"])
def test_an_example_with_its_answer_precedes_every_prompt_in_training_and_evaluation(
    toy_run: Command, plugin: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from harness.data.encoding import Encoded, Encoder
    from harness.generation.generator import Generator

    trained: list[str] = []
    answered: list[str] = []
    rows, run = Encoder.encode, Generator.run

    def noted_rows(self: Encoder, examples: Any) -> list[Encoded]:
        found = rows(self, examples)
        trained.extend(self.tokenizer.decode(row.prompt) for row in found)
        return found

    def noted_run(self: Generator, requests: Any, *arguments: Any, **options: Any) -> Any:
        answered.extend(self.loaded.tokenizer.decode(request.prompt) for request in requests)
        return run(self, requests, *arguments, **options)

    monkeypatch.setattr(Encoder, "encode", noted_rows)
    monkeypatch.setattr(Generator, "run", noted_run)
    done = toy_run("--method", method, "--shots", "1", "--json")
    assert done.status == 0, done.err
    assert len(answered) == 3 * 4
    assert bool(trained) == (method != "no_finetune")

    data = plugin / "toy_plugin" / "data"
    train, test = (list(map(json.loads, (data / f"{s}.jsonl").read_text().splitlines())) for s in ("train", "test"))
    asked = {e["prompt"]: e["task"] for e in (*train, *test)}
    answers = {(e["prompt"], e["target"]): e["task"] for e in train}
    for text in (*trained, *answered):
        prompt, answer, question = (part for part in text.split("<unk>") if part)  # the toy has no token for a newline
        assert answers[prompt, answer] == asked[question]
        assert prompt != question


def test_a_dry_run_shows_spec_counts_and_costs_and_writes_nothing(toy_run: Command, tmp_path: Path) -> None:
    plan = toy_run("--method", "cgc_lora", "--dry-run", "--json").json
    assert plan["plan"]["steps"] == 4
    assert plan["plan"]["tasks"]["colour"]["n_train"] == 24
    assert plan["plan"]["parameters"]["stored"] > plan["plan"]["parameters"]["active"] > 0
    assert plan["plan"]["memory_bytes"] > 0
    assert plan["spec"]["method"]["resolved"]["n_common"] == 7
    assert not (tmp_path / "runs").exists()


def test_a_failure_is_recorded_and_the_same_command_resumes(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.pipeline.predict

    def crash(*_: object) -> None:
        raise ValueError("the second task went wrong")

    with monkeypatch.context() as patch:
        patch.setattr(harness.pipeline.predict, "predict_with_model", crash)
        failed = toy_run("--method", "lora_all")
    assert (failed.status, "went wrong" in failed.err) == (1, True)
    failure = json.loads((only(tmp_path) / "failure.json").read_text())
    assert failure["stage"] == "generate"
    assert "went wrong" in failure["traceback"]
    assert not (only(tmp_path) / "record.json").exists()
    trained_at = (only(tmp_path) / "adapter" / "adapter.json").stat().st_mtime_ns
    assert toy_run("--method", "lora_all").status == 0
    assert not (only(tmp_path) / "failure.json").exists()
    assert (only(tmp_path) / "adapter" / "adapter.json").stat().st_mtime_ns == trained_at


@pytest.mark.long
def test_a_task_without_training_rows_is_served_and_marked(toy_run: Command, plugin: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "dev", "test"):
        lines = (plugin / "toy_plugin" / "data" / f"{split}.jsonl").read_text().splitlines()
        kept = [x for x in lines if split != "train" or '"task": "last"' not in x]
        (data / f"{split}.jsonl").write_text("\n".join(kept) + "\n")
    for method in ("cgc_lora", "lora_single"):
        done = toy_run("--method", method, "--data", data, "--json")
        assert done.status == 0, done.err
        assert done.json["scores"]["official"]["tasks"]["last"]["n_train"] == 0
        assert "no training examples for" in done.err


def test_a_test_split_without_targets_means_evaluating_on_dev(toy_run: Command, plugin: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "dev", "test"):
        rows = [json.loads(x) for x in (plugin / "toy_plugin" / "data" / f"{split}.jsonl").read_text().splitlines()]
        for row in rows:
            row["target"] = "" if split == "test" else row["target"]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    done = toy_run("--method", "majority", "--data", data, "--json")
    assert "evaluating on the dev split" in done.err
    assert done.json["record"]["spec"]["eval"]["split"] == "dev"


def test_a_train_split_without_targets_is_an_error_and_not_a_training_on_nothing(
    toy_run: Command, plugin: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(plugin / "toy_plugin" / "data", data)
    train = data / "train.jsonl"
    rows = [json.loads(line) | {"target": ""} for line in train.read_text().splitlines()]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    failed = toy_run("--method", "lora_all", "--data", data)
    assert failed.status == 1
    assert "no example of the train split has a target" in failed.err


def test_a_blank_answer_among_many_is_left_out_of_training_and_scoring_and_counted(
    toy_run: Command, plugin: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(plugin / "toy_plugin" / "data", data)
    counts = {}
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]
        counts[split] = sum(row["task"] == "colour" for row in rows)
        next(row for row in rows if row["task"] == "colour")["target"] = " "
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = toy_run("--method", "majority", "--data", data, "--set", "eval.per_task=none", "--json")
    assert done.status == 0, done.err
    for split in counts:
        (note,) = [line for line in done.err.splitlines() if f"{split}: 1 example without a target left out" in line]
        assert "(colour 1); " in note
        assert f"{split} example 'colour-" in note or f"{split}-colour-" in note
    colour = done.json["scores"]["official"]["tasks"]["colour"]
    assert (colour["n_train"], colour["n"]) == (counts["train"] - 1, counts["test"] - 1)


def test_a_method_from_another_package_runs_by_the_same_command(toy_run: Command, harness: Command) -> None:
    done = toy_run("--method", "toy_lora", "--ablation", "narrow", "--json")
    assert done.status == 0, done.err
    assert done.json["record"]["spec"]["method"]["fields"]["rank"] == 2
    assert "toy-plugin" in harness("list").out
    assert "missing" in harness("list", "--check").out


def test_scoring_a_run_again_gives_the_same_scores(toy_run: Command, harness: Command, tmp_path: Path) -> None:
    scores = toy_run("--method", "lora_all", "--json").json["scores"]
    (only(tmp_path) / "scores.json").unlink()
    again = harness("score", only(tmp_path), "--json").json
    assert again["scores"] == scores
    assert again["record"]["run_id"]


def test_the_leaderboard_names_the_sample_and_no_winner(toy_run: Command, harness: Command, tmp_path: Path) -> None:
    for extra in (["--method", "majority"], ["--method", "toy_lora"], ["--method", "toy_lora", "--ablation", "narrow"]):
        toy_run(*extra)
    board = harness("leaderboard", "toys", "--out", tmp_path / "runs").out
    assert "embedded sample" in board
    assert "&nbsp;toy_lora+narrow" in board
    assert "**" not in "".join(line for line in board.splitlines() if line.startswith("| "))


def test_runs_are_listed_with_their_state(toy_run: Command, harness: Command, tmp_path: Path) -> None:
    toy_run("--method", "majority")
    assert "done" in harness("runs", "--out", tmp_path / "runs").out
