"""`benchmarks/gpu_check.py` on toys: its log, its time limits, and that every part works."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script, which is in no package; its neighbours are imported as they are when it is run."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("gpu_check")
    sys.path.remove(str(FOLDER))


def check(tmp_path: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    out = tmp_path / "log.jsonl"
    command = [sys.executable, str(FOLDER / "gpu_check.py"), "--cpu", "--out", str(out), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    return done, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def part(script: ModuleType, name: str, work: Any, seconds: float = 60) -> Any:
    return script.Part(name=name, description="a toy", seconds=seconds, work=work)


def test_a_verdict_compares_a_value_with_its_threshold(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = script.Log(path, "toys", counts=True)
    for value, sign in ((1.0, "<="), (1.2, "<="), (1.0, ">="), (0.8, ">=")):
        log.verdict("ratio", value, sign, 1.0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["passed"] for line in lines] == [True, False, True, False]
    assert script.summary(path)[0] == 4
    assert script.summary(path)[1] == [
        "toys: FAIL ratio: 1.2 (must be <= 1)",
        "toys: FAIL ratio: 0.8 (must be >= 1)",
    ]


def test_thresholds_of_gpus_are_not_applied_to_a_cpu(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    script.Log(path, "toys", counts=False).verdict("ratio", 9.0, "<=", 1.0)
    assert json.loads(path.read_text()) == {"part": "toys", "what": "ratio", "value": 9.0}
    assert script.summary(path) == (0, [])


@pytest.mark.long
def test_a_part_that_fails_dies_or_does_not_end_leaves_the_others(script: ModuleType, tmp_path: Path) -> None:
    import os
    import signal

    def fails(machine: Any, log: Any) -> None:
        raise ValueError("no toys")

    def dies(machine: Any, log: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hangs(machine: Any, log: Any) -> None:
        log.figure("begun", 1)
        time.sleep(60)

    def works(machine: Any, log: Any) -> None:
        log.figure("toys", 3)

    path = tmp_path / "log.jsonl"
    parts = [
        part(script, "fails", fails),
        part(script, "dies", dies),
        part(script, "hangs", hangs, seconds=2),
        part(script, "works", works),
        part(script, "long", works, seconds=1e6),
    ]
    script.run_all(parts, path, cpu=True, budget=120.0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["failed"].startswith("ValueError: no toys (test_gpu_check.py:")
    assert lines[1]["failed"] == "its process ended with status -9"
    assert lines[2:4] == [
        {"part": "hangs", "what": "begun", "value": 1},
        {"part": "hangs", "failed": "stopped after 3 s"},
    ]
    assert lines[4] == {"part": "works", "what": "toys", "value": 3}
    assert "it takes about 1000000 s" in lines[5]["skipped"]
    assert len(script.summary(path)[1]) == 3


def test_parts_are_planned_for_less_than_nine_minutes(script: ModuleType) -> None:
    parts = importlib.import_module("gpu_parts").PARTS
    assert sum(one.seconds for one in parts) <= script.BUDGET_SECONDS < 9 * 60
    assert len({one.name for one in parts}) == len(parts)


@pytest.mark.slow
def test_the_command_writes_figures_of_a_cpu(tmp_path: Path) -> None:
    done, lines = check(tmp_path, "--only", "machine", "waits")
    assert done.returncode == 0, done.stderr
    assert lines[0] == {"part": "machine", "what": "device", "value": "CPU"}
    assert lines[-1] == {"part": "waits", "skipped": "needs a GPU"}
    assert "0 verdicts, 0 not passed" in done.stdout


@pytest.mark.slow
def test_without_a_gpu_the_command_names_the_remedy(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    out = tmp_path / "log.jsonl"
    command = [sys.executable, str(FOLDER / "gpu_check.py"), "--out", str(out), "--only", "machine"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no CUDA device: run on a machine with one, or give --cpu" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_works_on_toys(script: ModuleType, tmp_path: Path) -> None:
    done, lines = check(tmp_path, "--seconds", "800")
    assert done.returncode == 0, done.stdout + done.stderr
    parts = importlib.import_module("gpu_parts").PARTS
    assert {line["part"] for line in lines} == {one.name for one in parts}
    assert {line["part"] for line in lines if "skipped" in line} == {one.name for one in parts if one.needs_gpu}
