"""A leaderboard's file on the toys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

QUICK = """
suite = "toys"
model = "{model}"
budget = "active:4"
seeds = [0, 1]
settings = {{ train.steps = 2, train.batch_size = 4, eval.max_new_tokens = 3, eval.per_task = 2 }}
"""


@pytest.fixture
def board_file(toy_model: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Writes a leaderboard's file on the toys."""

    def write(text: str) -> Path:
        path = tmp_path / "boards" / "toys.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(QUICK.format(model=toy_model) + text)
        return path

    return write
