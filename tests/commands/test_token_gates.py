"""Methods with token gates through the installed command: trained, evaluated, predicted with, and not exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.long
@pytest.mark.parametrize("method", ["hydra_lora", "lora_moe", "mola", "adamole", "mixlora"])
def test_a_run_needs_no_label_to_predict_and_its_export_is_an_error_with_a_remedy(
    toy_run: Command, harness: Command, plugin: Path, tmp_path: Path, method: str
) -> None:
    done = toy_run("--method", method, "--set", "train.lr=0.02", "--json")
    run = Path(done.json["directory"])
    record = json.loads((run / "record.json").read_text())
    assert record["parameters"]["stored"] == record["parameters"]["active"] > 0
    log = lines(run / "train.jsonl")
    assert log[-1]["loss"] < log[0]["loss"]

    exported = harness("export", run, "--task", "last", "--out", tmp_path / "lora")
    assert exported.status == 1
    assert "weighs the experts of each token by its hidden state" in exported.err
    assert "harness predict" in exported.err
    assert not (tmp_path / "lora").exists()

    own = {p["id"]: p["text"] for path in run.glob("predictions/*.jsonl") for p in lines(path)}
    out = tmp_path / "predictions.jsonl"
    predicted = harness("predict", run, plugin / "toy_plugin" / "data" / "test.jsonl", "--out", out)
    assert predicted.status == 0, predicted.err
    found = {p["id"]: p["prediction"] for p in lines(out)}
    assert {key: found[key] for key in own} == own
    assert len(set(own.values())) > 1


def test_experts_by_depth_are_set_as_a_list_and_too_few_are_an_error(harness: Command, toy_model: Path) -> None:
    base = ("run", "--suite", "promptcblue", "--method", "mola", "--model", toy_model, "--dry-run")
    assert harness(*base, "--set", "method.n_experts=[5]").status == 0
    wrong = harness(*base, "--set", "method.n_experts=4,1")
    assert wrong.status == 2
    assert "method.n_experts=[4, 1]: give method.top_k=2 or more experts" in wrong.err
