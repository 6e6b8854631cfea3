"""Pictures of toy leaderboards: their names and words, and equal bytes for equal input."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from toy_runs import ToyRuns

from harness.leaderboard.build import build_leaderboard
from harness.leaderboard.plots.digest import make_digest
from harness.leaderboard.plots.tables import plots
from harness.store.files import write_json
from harness.store.run_directory import RunDirectory


@pytest.fixture
def toy_run(tmp_path: Path) -> ToyRuns:
    return ToyRuns(tmp_path / "runs")


def rows(p: float) -> dict[str, list[bool]]:
    return {t: [bool(x) for x in np.random.default_rng(i).random(60) < p] for i, t in enumerate(("A-sky", "A-sea"))}


def words(svg: bytes) -> str:
    return " ".join(
        "".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
    )


@pytest.mark.long
def test_a_full_table_has_its_pictures_with_its_rows(toy_run: ToyRuns) -> None:
    runs = [
        toy_run("moe", rows(0.7), model="a$b$c"),
        toy_run("moe", rows(0.6), ablation="no_gate", model="a$b$c"),
        toy_run("single", rows(0.5), model="a$b$c"),
        toy_run("majority", rows(0.1), model=None),
    ]
    board = build_leaderboard(runs, "toys", "official", reference="single")
    found = plots(board)
    names = ["table1-means", "table1-times", "table1-ablations", "table1-transfer"]
    assert list(found) == [f"{name}{variant}.svg" for name in names for variant in ("", "-dark")]
    assert {"moe", "single", "majority"} <= set(words(found["table1-means.svg"]).split())
    assert "a$b$c" in words(found["table1-means.svg"])
    assert "moe+no_gate" in words(found["table1-ablations.svg"])
    gain = board.tables[0].transfers[0].gains.gains["A-sky"].estimate
    assert gain is not None
    assert f"{100 * gain.value:+.1f}" in words(found["table1-transfer.svg"]).replace("−", "-")
    assert plots(board) == found


def test_pictures_without_content_are_left_out(toy_run: ToyRuns) -> None:
    assert plots(build_leaderboard([toy_run("majority", rows(0.2), model=None)], "toys", "official")) == {}
    sample = plots(build_leaderboard([toy_run("moe", rows(0.2), sample=True)], "toys", "official"))
    assert [name for name in sample if "dark" not in name] == ["table1-means.svg", "table1-times.svg"]
    assert "embedded sample, not a result" in words(sample["table1-means.svg"])


def test_light_and_dark_pictures_have_other_backgrounds_and_the_same_words(toy_run: ToyRuns) -> None:
    found = plots(build_leaderboard([toy_run("moe", rows(0.7))], "toys", "official"))
    light, dark = found["table1-means.svg"], found["table1-means-dark.svg"]
    assert words(light) == words(dark)
    assert b"#0d1117" in dark
    assert b"#0d1117" not in light


@pytest.mark.long
def test_losses_and_gates_of_a_run_are_drawn(toy_run: ToyRuns) -> None:
    run = toy_run("moe", rows(0.7))
    assert not any("curves" in name or "gates" in name for name in plots(build_leaderboard([run], "toys", "official")))
    lines = [json.dumps({"stage": "all", "step": i, "loss": 3.0 / (i + 1)}) for i in range(50)]
    run.train_log.write_text("\n".join(lines) + "\n")
    gates = {f"model.layers.{i}.q.gate": {"A-sky": [0.25, 0.75], "A-sea": [1.0, 0.0]} for i in range(2)}
    write_json(run.artefacts / "gates.json", gates)
    write_json(run.artefacts / "skills.json", gates)
    found = plots(build_leaderboard([run], "toys", "official"))
    light = {name.removeprefix("table1-") for name in found if "dark" not in name}
    assert {"curves.svg", "gates-moe.svg", "skills-moe.svg"} <= light
    assert {"0.25", "0.75", "1.00", "0.00", "sky", "sea"} <= set(words(found["table1-skills-moe.svg"]).split())
    assert {"sky", "sea"} <= set(words(found["table1-gates-moe.svg"]).split())
    assert "training loss" in words(found["table1-curves.svg"])


def test_the_digest_has_the_losses_of_each_task_over_its_own_steps(tmp_path: Path) -> None:
    steps = [
        {"stage": "all", "step": i, "loss": 1.0 * i, "tasks": {"sky": 2.0 * i} | ({"sea": 5.0} if i % 2 else {})}
        for i in range(40)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(step) + "\n" for step in [*steps, {"dev": 0.5}]))
    digest = make_digest(RunDirectory(tmp_path))
    assert digest.losses == tuple(2 * i + 0.5 for i in range(20))
    assert digest.task_losses == {"sky": tuple(4 * i + 1.0 for i in range(20)), "sea": (5.0,) * 20}
