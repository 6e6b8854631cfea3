"""`harness report` through the installed command, on baselines of the embedded sample."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_report import Parsed

from harness.leaderboard.report.page import blocks_of
from harness.store.run_directory import find_runs

Command = Callable[..., Any]
ROOT = Path(__file__).parents[2]
TASKS = ("CHIP-STS", "CMeEE-V2")


@pytest.fixture
def folder(harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the runs of three baselines in runs/."""
    monkeypatch.chdir(tmp_path)
    for method in ("majority", "nearest", "empty"):
        done = harness("run", "--suite", "promptcblue", "--tasks", ",".join(TASKS), "--method", method)
        assert done.status == 0, done.err
    return tmp_path


def test_a_suites_runs_become_one_file_that_its_check_accepts_until_the_runs_change(
    folder: Path, harness: Command
) -> None:
    made = harness("report", "promptcblue", "--out", "toys.html")
    assert made.status == 0, made.err
    assert made.out.startswith("toys.html")
    first = Path("toys.html").read_bytes()
    assert harness("report", "promptcblue", "--out", "toys.html", "--check").status == 0
    assert harness("report", "promptcblue", "--out", "toys.html").status == 0
    assert Path("toys.html").read_bytes() == first
    shutil.rmtree(next(run.path for run in find_runs(Path("runs")) if run.name.startswith("empty")))
    changed = harness("report", "promptcblue", "--out", "toys.html", "--check")
    assert changed.status == 1
    assert "toys.html differs from the report of the runs" in changed.err
    assert Path("toys.html").read_bytes() == first


def test_its_numbers_and_counts_are_those_of_leaderboard_and_compare(folder: Path, harness: Command) -> None:
    runs = {run.name.split("-")[0]: run.path for run in find_runs(folder / "runs")}
    assert harness("report", *runs.values()).status == 0
    blocks = blocks_of(Path("report.html").read_text("utf-8"))
    (table,) = blocks["board"]["tables"]
    (board,) = harness("leaderboard", "promptcblue", "--format", "json").json["tables"]
    for row, expected in zip(table["rows"], board["rows"], strict=True):
        assert row["method"] == expected["method"]
        assert row["mean"]["value"] == pytest.approx(expected["mean"]["value"], rel=1e-5)
    compared = harness("compare", runs["nearest"], "--with", runs["majority"], "--json").json["tasks"]["CHIP-STS"]
    sts = next(block for block in blocks.values() if block.get("task") == "CHIP-STS")
    order = [row["method"] for row in table["rows"]]
    right = {
        method: [
            flags[texts[order.index(method)]] == "1"
            for flags, texts in zip(sts["correct"][0], sts["predictions"], strict=True)
        ]
        for method in ("nearest", "majority")
    }
    pairs = list(zip(right["nearest"], right["majority"], strict=True))
    only = pairs.count((True, False)), pairs.count((False, True))
    (counted,) = compared["discordant"]
    assert (counted["only_a"], counted["only_b"]) == only
    assert sum(only)
    assert blocks["board"]["mcnemar"][f"{min(only)},{max(only)}"] == pytest.approx(compared["mcnemar"], rel=1e-5)


def test_every_prediction_is_in_the_file_with_what_its_parser_found(folder: Path, harness: Command) -> None:
    assert harness("report", "promptcblue").status == 0
    blocks = blocks_of(Path("report.html").read_text("utf-8"))
    order = [row["method"] for row in blocks["board"]["tables"][0]["rows"]]
    for run in find_runs(folder / "runs"):
        for task in TASKS:
            block = next(b for b in blocks.values() if b.get("task") == task)
            stored = {p.id: p.text for p in run.predictions([task])[task]}
            place = order.index(run.name.split("-")[0])
            found = {i: block["texts"][e][block["predictions"][e][place]] for e, i in enumerate(block["ids"])}
            assert found == stored
    entities = next(b for b in blocks.values() if b.get("task") == "CMeEE-V2")
    place = order.index("nearest")
    scores = []
    for e, texts in enumerate(entities["predictions"]):
        form = entities["forms"][0][e][texts[place]]
        scores.append([len(form.get(kind, ())) for kind in ("found", "missing", "spurious")])
    found, missing, spurious = (sum(column) for column in zip(*scores, strict=True))
    micro = 2 * found / (2 * found + missing + spurious)
    (table,) = blocks["board"]["tables"]
    assert table["rows"][place]["tasks"]["CMeEE-V2"]["value"] == pytest.approx(micro, rel=1e-5)


def test_a_report_without_examples_has_no_text_of_the_data(folder: Path, harness: Command) -> None:
    assert harness("report", "promptcblue", "--no-examples").status == 0
    html = Path("report.html").read_text("utf-8")
    assert list(blocks_of(html)) == ["board"]
    assert "written with --no-examples" in " ".join(Parsed(html).texts["bdi"])


def test_a_matrix_of_a_file_is_a_table_of_the_page(folder: Path, harness: Command) -> None:
    Path("affinity.json").write_text(json.dumps({"CHIP-STS": {"CMeEE-V2": 0.25}, "CMeEE-V2": {"CHIP-STS": -0.5}}))
    assert harness("report", "promptcblue", "--no-examples", "--matrix", "affinity.json").status == 0
    page = Parsed(Path("report.html").read_text("utf-8"))
    assert [text for text in page.texts["td"] if text.strip()] == ["–", "0.25", "-0.5", "–"]
    refused = harness("report", "promptcblue", "--matrix", "missing.json")
    assert refused.status == 1
    assert "--matrix missing.json: not a JSON file" in refused.err


def test_what_is_neither_a_name_nor_runs_is_one_line(folder: Path, harness: Command) -> None:
    unknown = harness("report", "promptcblu")
    assert (unknown.status, unknown.err.count("\n")) == (2, 1)
    assert "promptcblu" in unknown.err
    mixed = harness("report", "promptcblue", "runs")
    assert (mixed.status, mixed.err.count("\n")) == (1, 1)
    assert "is not a run" in mixed.err
    nowhere = harness("report", "promptcblue", "--no-examples", "--out", "nowhere/toys.html")
    assert nowhere.status == 1
    assert "the folder nowhere does not exist" in nowhere.err


def test_published_records_of_the_sample_make_a_report_with_their_examples(
    harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    records = [
        p
        for p in sorted((ROOT / "leaderboards" / "records").glob("*-planted-*"))
        if "nearest" in p.name or "majority" in p.name
    ]
    made = harness("report", *records)
    assert made.status == 0, made.err
    blocks = blocks_of(Path("report.html").read_text("utf-8"))
    assert len(blocks) == 1 + len(blocks["board"]["tables"][0]["tasks"])
