"""A stage that a finished run has trained is not trained again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Command = Callable[..., Any]


def tensors(folder: Path, method: str) -> dict[str, torch.Tensor]:
    (run,) = (folder / "runs").glob(f"{method}-*")
    return load_file(run / "adapter" / "adapter.safetensors")


def test_lorahub_takes_its_loras_from_a_finished_run_and_says_so(toy_run: Command, tmp_path: Path) -> None:
    hub = ["--method", "lorahub", "--set", "method.steps=4", "--set", "method.shots=2", "--json"]
    alone = toy_run(*hub)
    assert alone.status == 0, alone.err
    trained = tensors(tmp_path, "lorahub")
    (tmp_path / "runs").rename(tmp_path / "before")

    assert toy_run("--method", "lora_single").status == 0
    reused = toy_run(*hub)
    assert reused.err.count("taken from lora_single") == 3
    assert reused.json["record"]["training"]["steps"] == 0
    assert alone.json["record"]["training"]["steps"] == 12
    again = tensors(tmp_path, "lorahub")
    assert all(torch.equal(trained[k], again[k]) for k in trained)


def test_another_seed_or_rank_trains_for_itself(toy_run: Command) -> None:
    assert toy_run("--method", "lora_single").status == 0
    hub = ["--method", "lorahub", "--set", "method.steps=2", "--set", "method.shots=1"]
    assert "taken from" not in toy_run(*hub, "--seed", "1").err
    assert "taken from" not in toy_run(*hub, "--set", "method.rank=4").err
