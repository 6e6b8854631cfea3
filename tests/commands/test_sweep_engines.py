"""`harness sweep` on a Ray cluster of this machine, and by two processes that share a folder of runs."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
BOARD = """
suite = "toys"
model = "{model}"
seeds = [0]
budget = "none"
baselines = ["majority"]
settings = {{ train.steps = {steps}, eval.per_task = 2, eval.max_new_tokens = 4 }}

[[row]]
method = "lora_all"
"""
OPEN = {"RAY_AUTH_MODE": "disabled"}  # A cluster of the test has no token, which versions of Ray ask for by default.
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the package ray")


@pytest.fixture
def board(tmp_path: Path, toy_model: Path) -> Callable[[int], Path]:
    def write(steps: int) -> Path:
        path = tmp_path / "toys.toml"
        path.write_text(BOARD.format(model=toy_model, steps=steps))
        return path

    return write


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a Ray cluster with two CPUs, which runs until the test ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = str(Path(sys.executable).with_name("ray"))
    options = ["--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    environment = {**os.environ, **OPEN, "RAY_USAGE_STATS_ENABLED": "0"}
    head = subprocess.Popen(
        [ray, "start", *options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while time.monotonic() < until and not _listens(port):
        time.sleep(0.2)
    yield f"127.0.0.1:{port}"
    head.terminate()
    head.wait(60)


def ended(process: Any) -> tuple[str, str]:
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, err
    return out, err


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_ray
def test_a_sweep_on_ray_prints_what_a_local_one_prints(
    board: Callable[[int], Path], start: Command, tmp_path: Path
) -> None:
    path = board(2)
    local, _ = ended(start("sweep", path, "--out", tmp_path / "local"))
    records = {p.parent.name for p in (tmp_path / "local").glob("*/record.json")}
    remote, _ = ended(start("sweep", path, "--engine", "ray", "--out", tmp_path / "ray"))
    assert remote == local
    assert {p.parent.name for p in (tmp_path / "ray").glob("*/record.json")} == records
    assert not list((tmp_path / "ray").glob(".shared-*"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_ray
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_worker_of_a_cluster_loses_nothing(
    board: Callable[[int], Path], start: Command, cluster: str, tmp_path: Path
) -> None:
    path = board(120)
    sweep = start("sweep", path, "--engine", f"ray:{cluster}", "--jobs", 1, "--out", tmp_path / "runs", **OPEN)
    log, owner = [], []
    until = time.monotonic() + 200
    while time.monotonic() < until and not (log and log[0].stat().st_size and owner):
        assert sweep.poll() is None, sweep.communicate()
        log, owner = (list((tmp_path / "runs").glob(f"lora_all*/{name}")) for name in ("train.jsonl", ".owner"))
        time.sleep(0.05)
    os.kill(parent(json.loads(owner[0].read_text())["pid"]), signal.SIGKILL)
    out, err = ended(sweep)
    assert "its worker was lost" in err
    steps = [json.loads(line)["step"] for line in log[0].read_text().splitlines()]
    assert steps == list(range(1, 121))
    assert "2 of 2 runs are done" in out


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_ray
def test_an_address_without_a_cluster_is_an_error_with_a_remedy(
    board: Callable[[int], Path], start: Command, tmp_path: Path
) -> None:
    sweep = start("sweep", board(2), "--engine", "ray:127.0.0.1:1", "--out", tmp_path / "runs")
    _, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 2, err
    assert "no connection to a Ray cluster" in err
    assert "ray start --head" in err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_sweeps_of_one_folder_share_the_runs_between_them(
    board: Callable[[int], Path], start: Command, tmp_path: Path
) -> None:
    """As the elements of a Slurm array do: each run is done once, and both report that all are done."""
    path = board(2)
    array = [start("sweep", path, "--out", tmp_path / "runs", SLURM_ARRAY_TASK_ID=str(i)) for i in range(2)]
    finished = [ended(process) for process in array]
    assert all("2 of 2 runs are done" in out for out, _ in finished)
    assert len(list((tmp_path / "runs").glob("*/record.json"))) == 2
    (log,) = (tmp_path / "runs").glob("lora_all*/train.jsonl")
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2]
    assert not list((tmp_path / "runs").rglob("failure.json"))
