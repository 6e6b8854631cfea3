"""Training: a LoRA per task equals one trained alone, adapters are loaded again, divergence is reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.numeric

Command = Callable[..., Any]


def weights(folder: Path, method: str) -> dict[str, torch.Tensor]:
    (run,) = (folder / "runs").glob(f"{method}-*")
    return load_file(run / "adapter" / "adapter.safetensors")


def test_a_lora_per_task_is_lora_all_on_that_task_alone_bit_for_bit(toy_run: Command, tmp_path: Path) -> None:
    dropout = ["--set", "method.dropout=0.1"]
    for method in ("lora_single", "lora_all"):
        assert toy_run("--method", method, "--tasks", "first", *dropout).status == 0
    single, alone = weights(tmp_path, "lora_single"), weights(tmp_path, "lora_all")
    mine = {k: v for k, v in single.items() if "first" in k}
    assert len(mine) == len(alone)
    for ours, theirs in zip(sorted(mine), sorted(alone), strict=True):
        assert torch.equal(mine[ours], alone[theirs]), (ours, theirs)
    assert any(float(v.abs().max()) > 0 for v in mine.values() if v.shape[1] == 16)  # a B factor has moved from zero


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_tasks(toy_run: Command, tmp_path: Path) -> None:
    failed = toy_run("--method", "lora_all", "--set", "train.lr=1e30", "--set", "train.clip=none")
    assert failed.status == 1
    assert "colour" in failed.err
    assert "smaller train.lr" in failed.err
    failure = json.loads(next((tmp_path / "runs").glob("*/failure.json")).read_text())
    assert failure["stage"] == "train"
    assert "step" in failure["where"]


def test_the_adapter_on_disk_loads_back_to_equal_outputs(toy_model: Path, toy_run: Command, tmp_path: Path) -> None:
    from harness.models.loading import load_model
    from harness.registry import method_class
    from harness.store.adapter import load_into

    toy_run("--method", "cgc_lora", "--set", "train.lr=0.05")
    (run,) = (tmp_path / "runs").iterdir()
    outputs = []
    for seed in (0, 1):
        loaded = load_model(str(toy_model), "fp32", "cpu")
        adapter = method_class("cgc_lora")().attach(loaded.model, ["colour", "first", "last"], seed=seed)
        load_into(run / "adapter", adapter)
        with adapter.route(torch.tensor([1, 2])), torch.no_grad():
            outputs.append(loaded.model(torch.tensor([[5, 6, 7], [5, 6, 7]])).logits)
    assert torch.equal(*outputs)
    assert not torch.allclose(outputs[0][0], outputs[0][1])
