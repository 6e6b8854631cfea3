"""Pictures of toy leaderboards: which there are, that they are SVG, and that they are the same every time."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from toy_runs import ToyRuns

from harness.leaderboard import build
from harness.plots import plots


@pytest.fixture
def toy_run(tmp_path: Path) -> ToyRuns:
    return ToyRuns(tmp_path / "runs")


def rows(p: float) -> dict[str, list[bool]]:
    return {t: [bool(x) for x in np.random.default_rng(i).random(60) < p] for i, t in enumerate(("A-sky", "A-sea"))}


def words(svg: bytes) -> str:
    return " ".join(
        "".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
    )


def test_a_full_table_has_three_pictures_with_its_rows(toy_run: ToyRuns) -> None:
    runs = [
        toy_run("moe", rows(0.7), model="a$b$c"),
        toy_run("moe", rows(0.6), ablation="no_gate", model="a$b$c"),
        toy_run("single", rows(0.5), model="a$b$c"),
        toy_run("majority", rows(0.1), model=None),
    ]
    board = build(runs, "toys", "official", reference="single")
    found = plots(board)
    assert list(found) == ["table1-means.svg", "table1-ablations.svg", "table1-transfer.svg"]
    assert {"moe", "single", "majority"} <= set(words(found["table1-means.svg"]).split())
    assert "a$b$c" in words(found["table1-means.svg"])
    assert "moe+no_gate" in words(found["table1-ablations.svg"])
    gain = board.tables[0].transfers[0][2].gains["A-sky"].value
    assert f"{100 * gain:+.1f}" in words(found["table1-transfer.svg"]).replace("−", "-")
    assert plots(board) == found


def test_pictures_without_anything_to_show_are_left_out(toy_run: ToyRuns) -> None:
    assert plots(build([toy_run("majority", rows(0.2), model=None)], "toys", "official")) == {}
    sample = plots(build([toy_run("moe", rows(0.2), sample=True)], "toys", "official"))
    assert list(sample) == ["table1-means.svg"]
    assert "embedded sample, no result" in words(sample["table1-means.svg"])
