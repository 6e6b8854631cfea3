"""From a leaderboard's file to committed Markdown, through the installed command, on the embedded sample."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.leaderboard.plots.digest import read_digest
from harness.store.run_directory import RunDirectory, find_runs

Command = Callable[..., Any]
ROOT = Path(__file__).parents[2]
FILE = """
suite = "promptcblue"
tasks = "CHIP-STS,CHIP-CTC"
seeds = [0]
settings.train.steps = 2
settings.train.batch_size = 2
settings.eval.max_new_tokens = 4
baselines = ["majority"]
[[row]]
method = "lora_all"
[[sweep]]
name = "rows"
method = "cgc_lora"
grid = { train.per_task = [8] }
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with leaderboards/mini.toml, and with the runs of ``harness sweep`` in runs/."""
    folder = tmp_path_factory.mktemp("swept")
    file = folder / "leaderboards" / "mini.toml"
    file.parent.mkdir()
    file.write_text(FILE)
    command = [str(Path(sys.executable).parent / "harness"), "sweep", str(file), "--jobs", "2"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "3 of 3 runs are done" in done.stdout
    assert "[3/3]" in done.stderr
    return folder


@pytest.fixture
def folder(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in, whose runs are recorded as those of a clean checkout."""
    copy = tmp_path / "swept"
    shutil.copytree(swept, copy)
    for run in find_runs(copy / "runs"):
        clean(run)
    monkeypatch.chdir(copy)
    return copy


def clean(run: RunDirectory) -> None:
    record = run.record()
    assert record is not None
    provenance = record.provenance.model_copy(update={"dirty": False, "commit": "0" * 40})
    run.write("record.json", record.model_copy(update={"provenance": provenance}))


@pytest.mark.long
def test_a_swept_leaderboard_passes_its_check_until_a_figure_is_edited(folder: Path, harness: Command) -> None:
    assert harness("leaderboard", "mini", "--write").status == 0
    assert harness("leaderboard", "mini", "--check").status == 0
    path = folder / "leaderboards" / "mini.md"
    text = path.read_text()
    (mean,) = re.findall(r"^\| majority† \| (\d+\.\d) \| \d+\.\d to", text.replace("\u00a0", " "), flags=re.MULTILINE)
    path.write_text(text.replace(f"| majority† | {mean} |", f"| majority† | {float(mean) + 0.1:.1f} |", 1))
    refused = harness("leaderboard", "mini", "--check")
    assert refused.status == 1
    assert "differs from the runs" in refused.err


@pytest.mark.long
def test_published_records_alone_make_the_same_leaderboard(folder: Path, harness: Command) -> None:
    made = harness("leaderboard", "mini", "--out", "runs", "--publish")
    assert made.status == 0, made.err
    board = folder / "leaderboards"
    pictures = {p.name: p.read_bytes() for p in (board / "mini").iterdir()}
    assert {"table1-means.svg", "table1-sweep-rows.svg"} <= set(pictures)
    kept = {r.name: r for r in find_runs(board / "records")}
    assert sorted(name.split("-")[0] for name in kept) == ["cgc_lora", "lora_all", "majority"]
    for run in find_runs(folder / "runs"):
        assert read_digest(kept[run.name]) == read_digest(run)
        assert kept[run.name].has_predictions(["CHIP-STS", "CHIP-CTC"])
        assert not (kept[run.name].path / "predictions").exists()
    shutil.rmtree(folder / "runs")
    assert harness("leaderboard", "mini", "--check").status == 0
    assert harness("leaderboard", "mini", "--write").status == 0
    assert {p.name: p.read_bytes() for p in (board / "mini").iterdir()} == pictures
    for run in kept.values():
        verified = harness("verify", run.path)
        assert verified.status == 0, verified.out
        assert "scores: same: recomputed from 48 predictions" in verified.out
        assert "draws: same" in verified.out


@pytest.mark.long
def test_a_printed_leaderboard_has_the_users_runs_without_published_ones_and_their_pictures(
    folder: Path, harness: Command
) -> None:
    assert harness("leaderboard", "mini", "--out", "runs", "--publish").status == 0
    for run in find_runs(folder / "runs"):
        if not run.name.startswith("majority"):
            shutil.rmtree(run.path)
    own = harness("leaderboard", "mini").out
    assert "majority" in own
    assert "cgc_lora" not in own
    assert "<picture>" not in own
    shutil.rmtree(folder / "runs")
    assert "cgc_lora" in harness("leaderboard", "mini").out


@pytest.mark.long
def test_one_run_that_cannot_be_published_leaves_the_markdown_as_it_was(folder: Path, harness: Command) -> None:
    (run,) = (r for r in find_runs(folder / "runs") if r.name.startswith("lora_all"))
    scores = json.loads((run.path / "scores.json").read_text())
    scores["official"]["tasks"]["CHIP-STS"]["value"] = 0.999
    (run.path / "scores.json").write_text(json.dumps(scores))
    before = (folder / "leaderboards" / "mini.md").read_bytes()
    refused = harness("leaderboard", "mini", "--publish")
    assert refused.status == 1
    assert f"{run.name} cannot be published" in refused.err
    assert "0.999" in refused.err
    assert (folder / "leaderboards" / "mini.md").read_bytes() == before
    assert len(find_runs(folder / "leaderboards" / "records")) == 2


COMMITTED = sorted(p.stem for p in (ROOT / "leaderboards").glob("*.toml") if p.with_suffix(".md").exists())


@pytest.mark.skipif(not COMMITTED, reason="no leaderboard is committed")
@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_leaderboard_is_that_of_the_committed_records(
    name: str, harness: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    checked = harness("leaderboard", name, "--check", "--out", "leaderboards/records")
    assert checked.status == 0, checked.err
    named = set(re.findall(rf'"({name}/[^"]+\.svg)"', (ROOT / "leaderboards" / f"{name}.md").read_text("utf-8")))
    assert named == {f"{name}/{p.name}" for p in (ROOT / "leaderboards" / name).glob("*.svg")}
