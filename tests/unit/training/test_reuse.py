"""A stage that a finished run has trained is not trained again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from logged import messages
from safetensors.torch import load_file

Command = Callable[..., Any]


def tensors(folder: Path, method: str) -> dict[str, torch.Tensor]:
    (run,) = (folder / "runs").glob(f"{method}-*")
    return load_file(run / "adapter" / "adapter.safetensors")


@pytest.mark.long
def test_lorahub_reuses_the_loras_of_a_finished_run(toy_run: Command, tmp_path: Path) -> None:
    hub = ["--method", "lorahub", "--set", "method.steps=4", "--set", "method.shots=2", "--json"]
    alone = toy_run(*hub)
    assert alone.status == 0, alone.err
    trained = tensors(tmp_path, "lorahub")
    (tmp_path / "runs").rename(tmp_path / "before")

    assert toy_run("--method", "lora_single").status == 0
    with messages() as logged:
        reused = toy_run(*hub)
    assert sum("reused from lora_single" in line for line in logged) == 3
    cost = reused.json["record"]["training"]
    assert cost["steps"] == 0
    assert cost["seconds"] == cost["search_seconds"] > 0
    assert cost["tokens_per_second"] is None
    assert alone.json["record"]["training"]["seconds"] > alone.json["record"]["training"]["search_seconds"] > 0
    assert alone.json["record"]["training"]["steps"] == 12
    again = tensors(tmp_path, "lorahub")
    assert all(torch.equal(trained[k], again[k]) for k in trained)


@pytest.mark.long
def test_another_seed_or_rank_trains_for_itself(toy_run: Command) -> None:
    assert toy_run("--method", "lora_single").status == 0
    hub = ["--method", "lorahub", "--set", "method.steps=2", "--set", "method.shots=1"]
    assert "reused from" not in toy_run(*hub, "--seed", "1").err
    assert "reused from" not in toy_run(*hub, "--set", "method.rank=4").err


@pytest.mark.long
def test_another_limit_on_new_tokens_trains_for_itself(toy_run: Command) -> None:
    """Prompts have less room in training where predictions have more, so the stages are not the same training."""
    assert toy_run("--method", "lora_single", "--set", "eval.max_new_tokens=4").status == 0
    hub = ["--method", "lorahub", "--set", "method.steps=2", "--set", "method.shots=1"]
    with messages() as logged:
        done = toy_run(*hub, "--set", "eval.max_new_tokens=8", "--json")
    assert not [line for line in logged if "reused from" in line]
    assert done.json["record"]["training"]["steps"] > 0


@pytest.mark.long
def test_a_training_that_was_evaluated_in_another_way_is_reused_whole(toy_run: Command, tmp_path: Path) -> None:
    cgc = ["--method", "cgc_lora", "--json"]
    tuned = toy_run(*cgc, "--set", "eval.split=dev", "--out", tmp_path / "runs" / "tuning").json
    with messages() as logged:
        done = toy_run(*cgc)
    source, run = Path(tuned["directory"]), Path(done.json["directory"])
    assert any(f"reused from {source.name}" in line for line in logged)
    assert done.json["record"]["training"] == tuned["record"]["training"]
    assert done.json["record"]["provenance"]["settings"]["trained_by"] == source.name
    for name in ("adapter/adapter.safetensors", "train.jsonl", "artefacts/gates.json"):
        assert (run / name).read_bytes() == (source / name).read_bytes()
    predictions = {p.name: p.read_text() for p in (run / "predictions").iterdir()}

    (run / "record.json").unlink()
    again = toy_run(*cgc)
    assert again.json["record"]["training"] == tuned["record"]["training"]

    (tmp_path / "runs").rename(tmp_path / "before")
    with messages() as logged:
        alone = toy_run(*cgc)
    assert not any("reused from" in line for line in logged)
    own = Path(alone.json["directory"])
    assert (own / "adapter" / "adapter.safetensors").read_bytes() == (
        tmp_path / "before" / run.name / "adapter" / "adapter.safetensors"
    ).read_bytes()
    assert {p.name: p.read_text() for p in (own / "predictions").iterdir()} == predictions


def test_ways_to_decide_at_inference_share_one_training(toy_run: Command) -> None:
    first = toy_run("--method", "moa", "--json").json
    for ablation in ("vote", "label"):
        with messages() as logged:
            other = toy_run("--method", "moa", "--ablation", ablation, "--json").json
        assert any("the training is reused from" in line for line in logged)
        assert other["record"]["training"] == first["record"]["training"]
        assert other["record"]["run_id"] != first["record"]["run_id"]


@pytest.mark.long
def test_another_training_is_not_reused(toy_run: Command, harness: Command, tmp_path: Path) -> None:
    first = toy_run("--method", "lora_all", "--json").json
    for other in (["--set", "train.lr=2e-3"], ["--seed", "1"], ["--set", "eval.max_new_tokens=5"]):
        assert "reused from" not in toy_run("--method", "lora_all", *other).err
    weights = Path(first["directory"]) / "adapter" / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    done = toy_run("--method", "lora_all", "--set", "eval.per_task=3")
    assert done.status == 0
    assert "reused from" not in done.err
