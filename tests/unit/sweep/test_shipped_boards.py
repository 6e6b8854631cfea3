"""The leaderboard files that the project ships."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from harness.registry import BALANCERS, METHODS, method_class, plugins
from harness.sweep.spec import read_board

FOLDER = Path(__file__).parents[3] / "leaderboards"
BASELINES = {"majority", "nearest", "empty", "no_finetune"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_file_can_be_read_and_has_every_baseline_and_several_seeds(path: Path) -> None:
    board = read_board(path)
    assert set(board.baselines) == BASELINES
    assert len(board.seeds) >= 2


@pytest.mark.parametrize("name", ["promptcblue-smollm2", "promptcblue-7b", "firefly-smollm2", "firefly-7b"])
def test_files_for_pretrained_models_have_every_method_with_every_ablation(name: str) -> None:
    rows = {(row.method, row.ablation) for row in read_board(FOLDER / f"{name}.toml").row}
    ours = [method for method, plugin in plugins(METHODS).items() if plugin.distribution == "mtlora-harness"]
    trained = [method for method in ours if method_class(method).trains]
    assert rows >= {(method, ablation) for method in trained for ablation in (None, *method_class(method).ablations)}


def test_the_file_on_balancing_has_a_row_for_every_balancer_and_one_without() -> None:
    rows = [row for row in read_board(FOLDER / "promptcblue-balance.toml").row if row.method == "lora_all"]
    ours = [name for name, plugin in plugins(BALANCERS).items() if plugin.distribution == "mtlora-harness"]
    assert {row.settings.get("train.balance") for row in rows} == {None, *ours}


def test_the_hundred_instruction_tasks_are_those_that_the_rule_of_the_suite_draws() -> None:
    """The list they are drawn from is not shipped: of 756 names, a hundred have hashes below 0.15 of the range."""
    names = read_board(FOLDER / "superni-c_poly.toml").settings["suite.only"]
    assert isinstance(names, list)
    assert len(set(names)) == len(names) == 100
    hashes = [int(hashlib.sha256(f"0 {name}".encode()).hexdigest(), 16) / 2**256 for name in names]
    assert max(hashes) < 0.15
