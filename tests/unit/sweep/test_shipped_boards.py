"""The leaderboard files that the project ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.registry import METHODS, method_class, plugins
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
