"""``harness predict``: a finished run applied to examples of any file, on toys."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness.pipeline.predict_file as module

Command = Callable[..., Any]


def only(folder: Path) -> Path:
    """The one thing in a folder."""
    (found,) = folder.iterdir()
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, examples: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in examples), encoding="utf-8")
    return path


def made(run: Path) -> dict[str, str]:
    """Every prediction of a run by id."""
    return {p["id"]: p["text"] for path in run.glob("predictions/*.jsonl") for p in lines(path)}


@pytest.fixture
def trained(toy_run: Command, tmp_path: Path) -> Path:
    """A finished run whose tasks have weights of their own and answer differently."""
    done = toy_run("--method", "lora_single", "--set", "train.lr=0.05")
    assert done.status == 0, done.err
    return only(tmp_path / "runs")


@pytest.fixture
def test_file(plugin: Path) -> Path:
    return plugin / "toy_plugin" / "data" / "test.jsonl"


def test_predictions_equal_those_of_the_runs_own_evaluation_and_keep_the_order_of_the_file(
    trained: Path, harness: Command, test_file: Path, tmp_path: Path
) -> None:
    own = made(trained)
    examples = [e for e in lines(test_file) if e["id"] in own][::-1]
    file, out = write(tmp_path / "some.jsonl", examples), tmp_path / "out.jsonl"
    done = harness("predict", trained, file, "--out", out)
    assert done.status == 0, done.err
    assert f"predictions: {out} (12 examples)" in done.out
    found = lines(out)
    assert [line["id"] for line in found] == [e["id"] for e in examples]
    assert {line["id"]: line["prediction"] for line in found} == own
    assert [line["task"] for line in found] == [e["task"] for e in examples]
    assert all(set(line) == {"id", "task", "prediction", "truncated"} for line in found)
    assert len(set(own.values())) > 1
