"""``harness evaluate`` and ``harness try``: a finished run opened again, on toys."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.registry import METHODS, broken, method_class, plugins

Command = Callable[..., Any]


@pytest.fixture
def trained(toy_run: Command, made_once: Command, tmp_path: Path) -> Path:
    """A finished cgc_lora run, trained so hard that its tasks answer differently."""

    def make() -> None:
        done = toy_run("--method", "cgc_lora", "--set", "train.lr=0.05")
        assert done.status == 0, done.err

    return only(made_once("strong cgc_lora", tmp_path / "runs", make))


def only(folder: Path) -> Path:
    """The one thing in a folder."""
    (found,) = folder.iterdir()
    return found


def contents(folder: Path) -> dict[str, str]:
    """Every file that is no lock, with its hash; evaluations left out."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock" and "evaluations" not in p.parts]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def texts(folder: Path) -> dict[str, str]:
    """Every predicted text by id."""
    lines = [line for path in folder.glob("predictions/*.jsonl") for line in path.read_text().splitlines()]
    return {row["id"]: row["text"] for row in map(json.loads, lines)}


def test_an_evaluation_has_a_place_of_its_own_and_the_run_stays_as_it_is(trained: Path, harness: Command) -> None:
    before = contents(trained)
    value = harness("evaluate", trained, "--split", "dev", "--set", "eval.per_task=3", "--json").json
    folder = Path(value["directory"])
    assert folder == only(trained / "evaluations")
    assert set(value) == {"directory", "record", "scores"}
    assert set(texts(folder)) == {i for i in texts(folder) if i.startswith("dev-")}
    assert len(texts(folder)) == 9
    assert value["scores"]["official"]["tasks"]["colour"]["n"] == 3
    assert value["scores"]["official"]["tasks"]["colour"]["n_train"] == 24
    assert value["record"]["settings"]["eval"]["split"] == "dev"
    assert value["record"]["settings"]["run_id"] == json.loads((trained / "record.json").read_text())["run_id"]
    last = max((p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"), key=lambda p: p.stat().st_mtime_ns)
    assert last.name == "scores.json"
    assert contents(trained) == before


@pytest.mark.long
def test_the_same_settings_give_the_runs_own_texts_and_scores(
    trained: Path, toy_run: Command, harness: Command
) -> None:
    assert texts(Path(toy_run("--method", "no_finetune", "--json").json["directory"])) != texts(trained)
    value = harness("evaluate", trained, "--json").json
    assert texts(Path(value["directory"])) == texts(trained)
    assert value["scores"] == json.loads((trained / "scores.json").read_text())


@pytest.mark.long
def test_the_same_evaluation_again_loads_no_model_and_another_one_has_another_place(
    trained: Path, harness: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.pipeline.evaluate as module

    harness("evaluate", trained, "--split", "train", "--set", "eval.per_task=2")
    with monkeypatch.context() as patch:
        patch.setattr(module, "base_of", None)
        again = harness("evaluate", trained, "--split", "train", "--set", "eval.per_task=2")
    assert (again.status, "already complete" in again.err) == (0, True)
    harness("evaluate", trained, "--split", "train", "--set", "eval.per_task=1")
    assert len(list((trained / "evaluations").iterdir())) == 2


@pytest.mark.long
def test_an_interrupted_evaluation_makes_only_what_is_missing(
    trained: Path, harness: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.generation.predictions import PredictionWriter

    write = PredictionWriter.write

    def fail_on_last(self: Any, task: str, rows: Any) -> None:
        if task == "last":
            raise OSError("the disk is gone")
        write(self, task, rows)

    with monkeypatch.context() as patch:
        patch.setattr(PredictionWriter, "write", fail_on_last)
        failed = harness("evaluate", trained, "--split", "dev")
    assert (failed.status, "disk is gone" in failed.err) == (1, True)
    folder = only(trained / "evaluations")
    assert not (folder / "scores.json").exists()
    kept = {p.name: p.read_bytes() for p in folder.glob("predictions/*")}
    assert kept
    assert harness("evaluate", trained, "--split", "dev").status == 0
    for name, content in kept.items():
        assert (folder / "predictions" / name).read_bytes() == content
    assert len(texts(folder)) == 12


@pytest.mark.long
def test_scores_that_were_deleted_are_made_again_from_the_texts(trained: Path, harness: Command) -> None:
    first = harness("evaluate", trained, "--split", "dev", "--json").json
    (Path(first["directory"]) / "scores.json").unlink()
    assert harness("evaluate", trained, "--split", "dev", "--json").json["scores"] == first["scores"]


def test_an_evaluation_inside_of_a_run_is_scored_again_like_a_run(trained: Path, harness: Command) -> None:
    first = harness("evaluate", trained, "--split", "dev", "--set", "eval.per_task=1", "--json").json
    folder = Path(first["directory"])
    (folder / "scores.json").unlink()
    again = harness("score", folder, "--json")
    assert again.json["scores"] == first["scores"]
    assert (folder / "scores.json").exists()
    assert again.json["scores"] != harness("score", trained, "--json").json["scores"]
    nothing = harness("score", folder / "predictions")
    assert (nothing.status, "is not a run" in nothing.err) == (1, True)


@pytest.mark.long
def test_a_split_without_rows_of_a_task_keeps_the_routes_of_the_others(
    toy_run: Command, harness: Command, plugin: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(plugin / "toy_plugin" / "data", data)
    lines = (data / "dev.jsonl").read_text().splitlines()
    (data / "dev.jsonl").write_text("\n".join(x for x in lines if '"task": "colour"' not in x) + "\n")
    assert (
        toy_run("--method", "lora_single", "--data", data, "--set", "train.lr=0.05", "--set", "train.steps=20").status
        == 0
    )
    run = only(tmp_path / "runs")
    value = harness("evaluate", run, "--split", "dev", "--json").json
    assert list(value["scores"]["official"]["tasks"]) == ["first", "last"]
    found = texts(Path(value["directory"]))
    row = next(r for r in map(json.loads, (data / "dev.jsonl").read_text().splitlines()) if r["task"] == "last")
    assert answer(harness, run, "first", row["prompt"]).out != answer(harness, run, "last", row["prompt"]).out
    assert found[row["id"]] == answer(harness, run, "last", row["prompt"]).out.removesuffix("\n")


@pytest.mark.long
def test_an_inference_field_may_change_and_a_field_of_training_may_not(
    toy_run: Command, harness: Command, tmp_path: Path
) -> None:
    assert toy_run("--method", "moa").status == 0
    run = only(tmp_path / "runs")
    value = harness("evaluate", run, "--set", "method.routing=label", "--json").json
    assert value["record"]["settings"]["method"] == {"routing": "label"}
    for setting, message in {
        "method.rank=4": "method.rank changes training",
        "method.routin=label": "Did you mean 'method.routing'",
        "method.routing=luck": "unknown method.routing 'luck'",
        "train.lr=1": "cannot change without training",
        "eval.split=tset": "eval.split",
        "eval.splt=dev": "Did you mean 'eval.split'",
    }.items():
        wrong = harness("evaluate", run, "--set", setting)
        assert (wrong.status, message in wrong.err) == (2, True), wrong.err


@pytest.mark.usefixtures("plugin")
def test_inference_fields_are_fields() -> None:
    methods = [method_class(name) for name in plugins(METHODS) if name not in broken(METHODS)]
    assert any(m.inference_fields for m in methods)
    for method in methods:
        assert method.inference_fields <= {f.name for f in dataclasses.fields(method)}


@pytest.mark.long
@pytest.mark.parametrize("method", ["majority", "no_finetune"])
def test_runs_without_training_are_evaluated_too(
    toy_run: Command, harness: Command, tmp_path: Path, method: str
) -> None:
    assert toy_run("--method", method).status == 0
    value = harness("evaluate", only(tmp_path / "runs"), "--split", "dev", "--json").json
    assert value["scores"]["official"]["tasks"]["colour"]["n"] == 4


@pytest.mark.long
def test_data_or_model_that_are_others_by_now_are_refused(
    trained: Path, harness: Command, plugin: Path, toy_model: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(plugin / "toy_plugin" / "data", moved)
    assert harness("evaluate", trained, "--split", "dev", "--data", moved).status == 0
    with (moved / "train.jsonl").open("a") as file:
        file.write((moved / "dev.jsonl").read_text())
    other = harness("evaluate", trained, "--split", "dev", "--data", moved)
    assert (other.status, "is not the data that" in other.err, "--data" in other.err) == (1, True, True)
    model = tmp_path / "model"
    shutil.copytree(toy_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    other = harness("evaluate", trained, "--split", "dev", "--model", model)
    assert (other.status, "--model" in other.err) == (1, True)


def test_an_unknown_protocol_is_an_error_before_anything_is_evaluated(trained: Path, harness: Command) -> None:
    before = contents(trained)
    wrong = harness("evaluate", trained, "--split", "train", "--protocol", "offical")
    assert (wrong.status, "Did you mean 'official'" in wrong.err) == (2, True), wrong.err
    assert contents(trained) == before


def test_a_run_that_is_not_finished_is_not_evaluated(trained: Path, harness: Command) -> None:
    (trained / "record.json").unlink()
    early = harness("evaluate", trained)
    assert (early.status, "not finished" in early.err) == (1, True)
    nothing = harness("evaluate", trained.parent)
    assert (nothing.status, "no spec.json" in nothing.err) == (1, True)


def answer(harness: Command, run: Path, task: str, prompt: str) -> Any:
    """``harness try`` with a prompt on standard input."""
    before, sys.stdin = sys.stdin, io.StringIO(prompt)
    try:
        return harness("try", run, "--task", task)
    finally:
        sys.stdin = before


@pytest.mark.long
def test_try_answers_as_the_evaluation_did(toy_run: Command, harness: Command, plugin: Path, tmp_path: Path) -> None:
    assert toy_run("--method", "lora_single", "--set", "train.lr=0.05", "--shots", "1").status == 0
    run = only(tmp_path / "runs")
    made = texts(run)
    rows = map(json.loads, (plugin / "toy_plugin" / "data" / "test.jsonl").read_text().splitlines())
    tried = 0
    for row in [r for r in rows if r["id"] in made][::5]:
        assert answer(harness, run, row["task"], row["prompt"] + os.linesep).out == made[row["id"]] + "\n"
        tried += 1
    assert tried > 1


def test_try_says_what_is_wrong(trained: Path, harness: Command) -> None:
    wrong = answer(harness, trained, "color", "colour: the red car =")
    assert (wrong.status, "Did you mean 'colour'" in wrong.err) == (2, True)
    blank = answer(harness, trained, "colour", "\n")
    assert (blank.status, "the prompt is empty" in blank.err) == (2, True)


def test_try_asks_a_method_without_a_model_too(toy_run: Command, harness: Command, tmp_path: Path) -> None:
    assert toy_run("--method", "nearest").status == 0
    asked = answer(harness, only(tmp_path / "runs"), "colour", "colour: the red car 0 and a car =")
    assert asked.out == "red\n"


@pytest.mark.long
def test_label_last_and_vote_come_from_one_training_with_the_routers_accuracy_where_they_chose(
    toy_run: Command, harness: Command, plugin: Path, tmp_path: Path
) -> None:
    long = ("--set", "train.lr=0.02", "--set", "train.steps=20", "--set", "eval.per_task=8")
    assert toy_run("--method", "moa", "--set", "method.eta=1", *long).status == 0
    run = only(tmp_path / "runs")
    before = contents(run)
    found = {}
    for routing in ("label", "last", "vote"):
        folder = Path(harness("evaluate", run, "--set", f"method.routing={routing}", "--json").json["directory"])
        made = folder / "artefacts" / "router_accuracy.json"
        found[routing] = json.loads(made.read_text()) if made.exists() else None
    assert contents(run) == before, "nothing was trained"
    assert found["label"] is None, "with labels nothing is chosen"
    assert json.loads((run / "artefacts" / "router_accuracy.json").read_text()) == found["last"]
    for routing in ("last", "vote"):
        tasks = found[routing]["tasks"]
        assert list(tasks) == ["colour", "first", "last"]
        for task, row in tasks.items():
            assert sum(row["chosen"].values()) == row["n"] == 8
            assert row["accuracy"] == row["chosen"].get(task, 0) / 8
        assert found[routing]["mean"] == pytest.approx(sum(r["accuracy"] for r in tasks.values()) / 3)
    # a prompt says in its first word which task it is of, and the routers have learned to read it
    assert found["last"]["mean"] > 0.9


def test_the_routers_accuracy_is_that_of_the_choices_made_one_by_one(
    toy_run: Command, harness: Command, plugin: Path, tmp_path: Path
) -> None:
    from harness.pipeline.reopen import open_model

    assert toy_run("--method", "moa").status == 0
    run = only(tmp_path / "runs")
    artefact = json.loads((run / "artefacts" / "router_accuracy.json").read_text())
    said = artefact["tasks"]
    record = json.loads((run / "record.json").read_text())
    assert record["generation"]["router_accuracy"] == artefact["mean"]
    opened = open_model(run)
    finished, prepared = opened.finished, opened.prepared
    for task in prepared.tasks:
        encoded = prepared.encoder.prompts(finished.resolved.evaluated.of(task))
        routes = [prepared.adapter.assign([torch.tensor(prompt.tokens)]) for prompt in encoded]
        names = [prepared.tasks[route] for (route,) in routes]
        assert said[task]["chosen"] == {name: names.count(name) for name in set(names)}
        assert said[task]["n"] == len(names) == 4
