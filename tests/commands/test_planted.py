"""The planted truths, through the installed command: effects that are there are found, and one that is not is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
PAIR = ("pick-first", "pick-last")
RARE = "class-rare"
FILE = """
suite = "planted"
seeds = [0, 1, 2]
reference = "lora_single"
null = { method = "lora_all", seeds = [100, 101, 102] }
settings.train.steps = 240
settings.train.lr = 3e-3
settings.train.precision = "fp32"
baselines = ["majority", "nearest"]
[[row]]
method = "lora_all"
[[row]]
method = "lora_single"
[[row]]
method = "cgc_lora"
[[row]]
method = "cgc_lora"
ablation = "no_gate"
[[row]]
method = "moe_lora"
settings.train.lr = 1e-2
[[row]]
method = "moe_lora"
ablation = "no_gate"
settings.train.lr = 1e-2
[[claim]]
above = "cgc_lora"
below = "lora_all"
by = "construction"
"""


def test_one_short_run_is_a_result_and_not_that_of_a_sample(harness: Command, tmp_path: Path) -> None:
    run = ["run", "--suite", "planted", "--method", "nearest", "--out", tmp_path / "runs"]
    done = harness(*run)
    assert done.status == 0, done.err
    assert "embedded sample" not in done.out
    verified = harness("verify", *(tmp_path / "runs").glob("nearest-*"))
    assert verified.status == 0, verified.out + verified.err
    assert "the record does not include them" not in verified.out
    board = harness("leaderboard", "planted", "--out", tmp_path / "runs", "--format", "json").json
    (table,) = board["tables"]
    assert not table["sample"]
    assert table["data"]["label"] == "planted"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of a small leaderboard of the planted suite."""
    folder = tmp_path_factory.mktemp("planted")
    file = folder / "leaderboards" / "truths.toml"
    file.parent.mkdir()
    file.write_text(FILE)
    command = [str(Path(sys.executable).parent / "harness"), "sweep", str(file), "--jobs", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def rows(swept: Path) -> dict[str, Any]:
    """The rows of the board by label."""
    board = json.loads((swept / "leaderboards" / "truths.json").read_text("utf-8"))
    (table,) = board["tables"]
    return {row["method"]: row for row in table["rows"]}


@pytest.fixture
def compared(swept: Path, rows: dict[str, Any], harness: Command) -> Callable[[str, str], Any]:
    """``compared(a, b)``: the JSON of ``harness compare`` for two rows."""

    def call(a: str, b: str) -> Any:
        left, right = ([swept / "runs" / run for run in rows[label]["runs"]] for label in (a, b))
        found = harness("compare", *left, "--with", *right, "--json")
        assert found.status == 0, found.err
        return found.json

    return call


def both(row: dict[str, Any]) -> float:
    """The sum of the accuracies on the contradicting pair."""
    return float(sum(row["tasks"][task]["value"] for task in PAIR))


@pytest.mark.slow
@pytest.mark.timeout(3600)
class TestASweep:
    """What the harness finds in 21 trained runs."""

    def test_ranks_trained_methods(self, rows: dict[str, Any]) -> None:
        assert {label for label, row in rows.items() if row["rank"] is not None} == {
            "lora_all",
            "lora_single",
            "cgc_lora",
            "moe_lora",
        }

    def test_finds_that_shared_parameters_cannot_satisfy_the_pair(self, rows: dict[str, Any]) -> None:
        assert both(rows["lora_all"]) <= 1
        assert both(rows["moe_lora+no_gate"]) <= 1

    def test_finds_that_parts_of_each_task_repair_the_pair(self, rows: dict[str, Any]) -> None:
        for label in ("lora_single", "cgc_lora", "cgc_lora+no_gate", "moe_lora"):
            assert both(rows[label]) > 1.8, label

    @pytest.mark.parametrize("repaired", ["lora_single", "cgc_lora"])
    def test_finds_the_contradiction_significant(self, compared: Callable[..., Any], repaired: str) -> None:
        found = compared(repaired, "lora_all")
        assert any(found["tasks"][task]["outcome"] == "win" for task in PAIR)
        assert not any(found["tasks"][task]["outcome"] == "loss" for task in PAIR)

    @pytest.mark.parametrize("shared", ["lora_all", "cgc_lora"])
    def test_finds_that_shared_training_helps_the_rare_task(self, compared: Callable[..., Any], shared: str) -> None:
        rare = compared(shared, "lora_single")["tasks"][RARE]
        assert rare["difference"]["low"] > 0  # One task that is named beforehand needs no correction.
        assert rare["b"] < 0.4
        assert rare["a"] - rare["b"] > 0.3

    def test_finds_the_repaired_method_better_on_the_mean(self, compared: Callable[..., Any]) -> None:
        mean = compared("cgc_lora", "lora_all")["mean"]
        assert mean["value"] > 0.05
        assert mean["significant"]

    def test_finds_the_gate_where_it_is_the_only_part_of_each_task(self, compared: Callable[..., Any]) -> None:
        mean = compared("moe_lora", "moe_lora+no_gate")["mean"]
        assert mean["value"] > 0.05
        assert mean["significant"]

    def test_finds_no_need_of_a_gate_beside_experts_of_each_task(self, compared: Callable[..., Any]) -> None:
        found = compared("cgc_lora", "cgc_lora+no_gate")
        assert all(found["tasks"][task]["outcome"] == "tie" for task in PAIR)

    def test_finds_nothing_between_two_sets_of_seeds_of_one_method(self, swept: Path, harness: Command) -> None:
        board = json.loads((swept / "leaderboards" / "truths.json").read_text("utf-8"))
        noise = board["tables"][0]["seed_noise"]
        null, row = ([swept / "runs" / run for run in noise[side]] for side in ("null", "row"))
        found = harness("compare", *null, "--with", *row, "--json").json
        assert not found["mean"]["significant"]
        assert found["won"] == found["lost"] == 0
