"""`train.cache_frozen` through the installed command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

UPPER = ("--set", "method.targets=model.layers.1.*")
CACHED = ("--set", "train.cache_frozen=true")


def predictions(out: Path) -> str:
    files = sorted(out.glob("lora_all-*/predictions/*.jsonl"))
    assert files
    return "".join(file.read_text(encoding="utf-8") for file in files)


@pytest.mark.long
def test_runs_with_and_without_the_key_are_the_same_run_with_the_same_scores(
    toy_run: Callable[..., Any], harness: Callable[..., Any], tmp_path: Path
) -> None:
    first = toy_run("--method", "lora_all", *UPPER, *CACHED, "--json")
    assert first.status == 0, first.err
    states = sorted((tmp_path / "runs" / "hidden_states").rglob("*.safetensors"))
    assert states
    again = toy_run("--method", "lora_all", *UPPER, "--json")
    assert again.json == first.json
    assert len(list((tmp_path / "runs").glob("lora_all-*"))) == 1
    plain = toy_run("--method", "lora_all", *UPPER, "--out", tmp_path / "plain", "--json")
    assert plain.status == 0, plain.err
    assert predictions(tmp_path / "plain") == predictions(tmp_path / "runs")
    assert not (tmp_path / "plain" / "hidden_states").exists()
    listed = harness("runs", "--out", tmp_path / "runs")
    assert listed.status == 0
    assert "hidden_states" not in listed.out


def test_other_methods_learning_rates_and_the_search_for_them_use_the_same_states(
    toy_run: Callable[..., Any], tmp_path: Path
) -> None:
    assert toy_run("--method", "lora_all", *UPPER, *CACHED).status == 0
    folder = tmp_path / "runs" / "hidden_states"
    written = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    tuning = tmp_path / "runs" / "tuning"
    assert toy_run("--method", "cgc_lora", *UPPER, *CACHED, "--set", "train.lr=1e-2", "--out", tuning).status == 0
    assert list(tuning.glob("cgc_lora-*"))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == written
    assert not (tuning / "hidden_states").exists()


def test_adapting_every_block_with_the_key_is_an_error_with_a_remedy(toy_run: Callable[..., Any]) -> None:
    done = toy_run("--method", "lora_all", *CACHED)
    assert done.status == 1
    assert "the adapter changes the first block" in done.err
    assert "method.targets" in done.err


@pytest.mark.parametrize("other", ["train.compile=true"])
def test_a_combination_that_does_not_work_is_wrong_use(toy_run: Callable[..., Any], other: str) -> None:
    done = toy_run("--method", "lora_all", *CACHED, "--set", other)
    assert done.status == 2
    assert "not both" in done.err
