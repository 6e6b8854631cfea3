"""arrow and merge after lora_single, and harness transfer, through the installed command."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

Command = Callable[..., Any]
STRONG = ("--set", "train.lr=0.05", "--set", "train.steps=12")  # far enough from the base that its texts are others


@pytest.fixture
def single(toy_run: Command) -> Path:
    """A finished run of lora_single."""
    return Path(toy_run("--method", "lora_single", *STRONG, "--json").json["directory"])


def directory(done: Any) -> Path:
    assert done.status == 0, done.err
    return Path(done.json["directory"])


@pytest.mark.parametrize("method", ["arrow", "merge"])
def test_the_loras_of_lora_single_are_reused_so_that_nothing_is_trained(
    toy_run: Command, single: Path, method: str
) -> None:
    for extra in ((), ("--ablation", "all" if method == "arrow" else "ties")):
        done = toy_run("--method", method, *extra, *STRONG, "--json")
        record = done.json["record"]
        assert record["training"]["steps"] == 0, done.err
        adapter = load_file(Path(done.json["directory"]) / "adapter" / "adapter.safetensors")
        trained = load_file(single / "adapter" / "adapter.safetensors")
        assert all(torch.equal(value, adapter[name]) for name, value in trained.items())


def test_a_merge_says_how_much_of_each_layer_one_lora_holds(toy_run: Command, single: Path) -> None:
    run = directory(toy_run("--method", "merge", "--set", "method.how=ties", *STRONG, "--json"))
    kept = json.loads((run / "artefacts" / "kept.json").read_text())
    assert kept
    assert all(0 < share <= 1 for share in kept.values())


def test_arrow_is_not_exported_and_says_why(toy_run: Command, harness: Command, single: Path, tmp_path: Path) -> None:
    run = directory(toy_run("--method", "arrow", *STRONG, "--json"))
    done = harness("export", run, "--task", "last", "--out", tmp_path / "lora")
    assert done.status == 1
    assert "the weights of arrow depend on the token: it has no fold and cannot be exported" in done.err
    assert not (tmp_path / "lora").exists()


def test_other_numbers_of_loras_for_a_token_need_no_training(toy_run: Command, harness: Command, single: Path) -> None:
    run = directory(toy_run("--method", "arrow", *STRONG, "--json"))
    done = harness("evaluate", run, "--set", "method.top_k=1", "--json")
    assert done.status == 0, done.err
    assert done.json["record"]["settings"]["method"] == {"top_k": 1}


def test_arrow_predicts_without_task_names(toy_run: Command, harness: Command, single: Path, tmp_path: Path) -> None:
    run = directory(toy_run("--method", "arrow", *STRONG, "--json"))
    (tmp_path / "prompts.txt").write_text("copy this\n")
    done = harness("predict", run, tmp_path / "prompts.txt", "--out", tmp_path / "out.jsonl")
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "out.jsonl").read_text())["task"] is None


def test_a_transfer_matrix_has_the_run_s_own_scores_on_its_diagonal(harness: Command, single: Path) -> None:
    done = harness("transfer", single, "--json")
    assert done.status == 0, done.err
    found, own = done.json, json.loads((single / "scores.json").read_text())
    tasks = found["tasks"]
    assert len(tasks) > 1
    for protocol, scores in own.items():
        for task in tasks:
            assert found["adapters"][task][protocol]["tasks"][task] == scores["tasks"][task]
    folder = Path(found["directory"])
    lines = list(csv.DictReader((folder / "transfer.csv").read_text().splitlines()))
    assert len(lines) == len(own) * len(tasks) * (len(tasks) + 1)
    assert {line["weights"] for line in lines} == {"", *tasks}
    for name in ("transfer.svg", "transfer-dark.svg"):
        assert (folder / name).read_bytes().startswith(b"<?xml")


def test_the_matrix_holds_the_base_model_and_what_foreign_weights_predict(
    toy_run: Command, harness: Command, single: Path
) -> None:
    base = directory(toy_run("--method", "no_finetune", "--json"))
    done = harness("transfer", single, "--json")
    scores = json.loads((base / "scores.json").read_text())
    for protocol, of in scores.items():
        for task, score in of["tasks"].items():
            assert done.json["base"][protocol]["tasks"][task]["value"] == score["value"]
    folder, tasks = Path(done.json["directory"]), done.json["tasks"]
    texts = {owner: (folder / "adapters" / owner / "predictions" / f"{tasks[0]}.jsonl").read_text() for owner in tasks}
    assert len(set(texts.values())) > 1, "other weights predict otherwise"


def test_the_table_is_printed_and_a_second_call_does_nothing(harness: Command, single: Path) -> None:
    first = harness("transfer", single)
    assert first.status == 0, first.err
    assert "base model" in first.out
    folder = Path(first.out.splitlines()[-1].removeprefix("transfer: "))
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.jsonl")}
    again = harness("transfer", single)
    assert again.out == first.out
    assert "this matrix is already complete" in again.err
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.jsonl")} == before


def test_a_matrix_that_was_interrupted_keeps_its_predictions(harness: Command, single: Path) -> None:
    first = harness("transfer", single, "--json")
    folder, tasks = Path(first.json["directory"]), first.json["tasks"]
    kept = folder / "adapters" / tasks[0] / "predictions" / f"{tasks[-1]}.jsonl"
    lost = folder / "adapters" / tasks[-1] / "predictions" / f"{tasks[0]}.jsonl"
    (folder / "transfer.json").unlink()
    text = lost.read_text()
    lost.unlink()
    before = kept.stat().st_mtime_ns
    again = harness("transfer", single, "--json")
    assert again.json == first.json
    assert lost.read_text() == text
    assert kept.stat().st_mtime_ns == before


@pytest.mark.slow
def test_fewer_examples_are_another_matrix(harness: Command, single: Path) -> None:
    whole, part = (harness("transfer", single, *s, "--json") for s in ((), ("--set", "eval.per_task=2")))
    assert part.status == 0, part.err
    assert whole.json["directory"] != part.json["directory"]
    (task, *_) = part.json["tasks"]
    assert next(iter(part.json["base"].values()))["tasks"][task]["n"] == 2


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("lora_all", "lora_all has no weights of one task alone"),
        ("majority", "majority has no weights of one task alone"),
        ("moa", "moa chooses weights from the prompt"),
    ],
)
def test_runs_without_weights_for_each_task_have_no_matrix(
    toy_run: Command, harness: Command, method: str, words: str
) -> None:
    run = directory(toy_run("--method", method, "--json"))
    done = harness("transfer", run)
    assert (done.status, done.out) == (2, "")
    assert words in done.err
    assert not (run / "transfer").exists()


def test_clusters_and_keys_of_training_are_refused(toy_run: Command, harness: Command, single: Path) -> None:
    done = harness("transfer", single, "--set", "train.lr=1")
    assert done.status == 2
    assert "train.lr cannot change without training: harness transfer takes eval.* and method.* keys" in done.err
    clustered = directory(toy_run("--method", "moe_lora", "--clusters", "kind", "--json"))
    refused = harness("transfer", clustered)
    assert refused.status == 2
    assert "give a run without --clusters" in refused.err
