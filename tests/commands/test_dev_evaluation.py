"""Evaluations on dev while a run trains choose its adapter, and change nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.training.dev_score import dev_examples

Command = Callable[..., Any]


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def test_each_stage_is_evaluated_on_dev(toy_run: Command) -> None:
    keys = ["--set", "train.eval_every=4", "--set", "train.eval_rows=2"]
    done = toy_run("--method", "lora_single", *keys, "--json")
    assert done.status == 0, done.err
    scores = [line for line in log(Path(done.json["directory"])) if "dev" in line]
    assert len({line["stage"] for line in scores}) == len(scores) == 3
    assert all(line["step"] == 4 and 0 <= line["dev"] <= 1 for line in scores)


def test_the_examples_of_an_evaluation_are_a_few_of_the_dev_split(plugin: Path, hf_cache: Path) -> None:
    from toy_plugin.suite import Toys

    from harness.data.splits import Choice

    suite = Toys()
    examples = dev_examples(
        suite, str(plugin / "toy_plugin" / "data"), ["colour", "last"], Choice(per_task=2), key="a key"
    )
    assert {task: len(chosen) for task, chosen in examples.items()} == {"colour": 2, "last": 2}
    assert all(e.id.startswith("dev-") for chosen in examples.values() for e in chosen)


@pytest.mark.long
def test_evaluating_on_dev_changes_no_training_step(toy_run: Command) -> None:
    steps = []
    for keys in ([], ["--set", "train.eval_every=2", "--set", "train.eval_rows=1"]):
        done = toy_run("--method", "c_poly", "--set", "method.dropout=0.2", *keys, "--json").json
        lines = log(Path(done["directory"]))
        steps.append([(line["loss"], line["grad_norm"]) for line in lines if "loss" in line])
    assert steps[0] == steps[1]


def test_without_a_dev_split_nothing_can_be_evaluated_on_it(toy_run: Command, plugin: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_bytes((plugin / "toy_plugin" / "data" / f"{split}.jsonl").read_bytes())
    done = toy_run("--method", "lora_all", "--data", data, "--set", "train.eval_every=1")
    assert done.status == 1
    assert "no dev split" in done.err
