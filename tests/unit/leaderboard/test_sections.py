"""The sections that a leaderboard's file adds: sweeps, seed noise, learning rates, claims, published figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_runs import ToyRuns, without_deviations

from harness.config.spec import ClusterSpec, EvalConfig, TrainConfig
from harness.errors import HarnessError
from harness.leaderboard.build import build_leaderboard
from harness.leaderboard.export import to_json
from harness.leaderboard.files import Board, check_board, rendered, write_board
from harness.leaderboard.markdown import render_markdown
from harness.leaderboard.plots.tables import plots
from harness.leaderboard.tables import Leaderboard
from harness.store.run_directory import RunDirectory
from harness.store.tuning import Tried, Tuning, keep
from harness.sweep.entries import entries, request
from harness.sweep.spec import BoardSpec, read_board

FILE = """
suite = "toys"
model = "tiny"
data = "toy data"
budget = "none"
seeds = [0, 1]
tune = { lr = [1e-3, 1e-2] }
settings.train.steps = 10
null = { method = "lora_all", seeds = [8, 9] }
baselines = ["majority"]
[[row]]
method = "lora_all"
[[row]]
method = "cgc_lora"
[[row]]
method = "lora_all"
clusters = "kind"
[[sweep]]
name = "rows"
method = "cgc_lora"
tune = false
grid = { train.per_task = [5, "none"] }
[[orientation]]
name = "a|model"
value = 42.08
note = "published, in context"
[[claim]]
above = "cgc_lora"
below = "lora_all"
by = "its paper"
[[claim]]
above = "cgc_lora"
below = "nobody"
by = "nobody"
"""
STEPS = TrainConfig(steps=10)


@pytest.fixture
def toy_run(tmp_path: Path) -> ToyRuns:
    return ToyRuns(tmp_path / "runs")


@pytest.fixture
def file(tmp_path: Path) -> BoardSpec:
    path = tmp_path / "toys.toml"
    path.write_text(FILE)
    return read_board(path)


def sky(p: float) -> dict[str, list[bool]]:
    return {
        t: [bool(x) for x in np.random.default_rng(i).permutation(200) < 200 * p] for i, t in enumerate(("sky", "sea"))
    }


def make(toy_run: ToyRuns, file: BoardSpec, *more: RunDirectory) -> Leaderboard:
    runs = [
        *(toy_run("lora_all", sky(0.5), seed=s, train=STEPS) for s in (0, 1)),
        *(toy_run("lora_all", sky(0.52), seed=s, train=STEPS) for s in (8, 9)),
        *(toy_run("cgc_lora", sky(0.7), seed=s, train=STEPS.model_copy(update={"lr": 1e-2})) for s in (0, 1)),
        toy_run("cgc_lora", sky(0.6), train=STEPS.model_copy(update={"lr": 1e-2, "per_task": 5})),
        toy_run("majority", sky(0.2), model=None, train=TrainConfig()),
        *more,
    ]
    return build_leaderboard(runs, "toys", "official", file=file)


def test_points_of_sweeps_and_the_null_row_are_not_rows(toy_run: ToyRuns, file: BoardSpec, plugin: Path) -> None:
    (table,) = make(toy_run, file).tables
    assert [(r.label, len(r.group.runs)) for r in table.rows] == [("cgc_lora", 2), ("lora_all", 2), ("majority", 1)]
    (sweep,) = table.sweeps
    assert [(dict(p.at), p.group.value(None), len(p.group.runs)) for p in sweep.points] == [
        ({"train.per_task": "5"}, pytest.approx(0.6), 1),
        ({"train.per_task": "None"}, pytest.approx(0.7), 2),
    ]
    assert table.seed_noise is not None
    assert table.seed_noise.difference is not None
    assert table.seed_noise.difference.value == pytest.approx(0.02)


def test_runs_that_the_file_does_not_ask_for_are_rows(toy_run: ToyRuns, file: BoardSpec, plugin: Path) -> None:
    other = toy_run("cgc_lora", sky(0.9), train=TrainConfig(steps=11))
    limited = toy_run("cgc_lora", sky(0.9), train=TrainConfig(steps=10, per_task=6))
    labels = [r.label for r in make(toy_run, file, other, limited).tables[0].rows]
    assert len(labels) == 5
    assert sum("train.steps=11" in x for x in labels) == 1


def test_a_row_names_its_clusters(toy_run: ToyRuns, file: BoardSpec, plugin: Path) -> None:
    groups = ClusterSpec(label="kind", groups={"a": ("sky",), "b": ("sea",)})
    board = make(toy_run, file, toy_run("lora_all", sky(0.55), train=STEPS, clusters=groups))
    assert [r.label for r in board.tables[0].rows][1] == "lora_all (1+2 kind)"
    assert "(1+2 kind)" in render_markdown(board)


@pytest.mark.long
def test_the_markdown_has_every_section(toy_run: ToyRuns, file: BoardSpec, plugin: Path) -> None:
    run = toy_run("lora_all", sky(0.5), seed=0, train=STEPS)
    grid = (Tried(lr=1e-3, mean=0.41, run="x"), Tried(lr=1e-2, mean=None, run="y"))
    keep(run, Tuning(label="lora_all", split="dev", seed=0, grid=grid, chosen=1e-3, open_ends=()))
    board = make(toy_run, file)
    text = render_markdown(board).replace("\u00a0", " ")
    assert "| lora_all | **41.0** | diverged |" in text
    assert "Mean on dev, seed 0" in text
    assert "At the edge" not in text
    assert "lora_all with the seeds 8, 9 instead of 0, 1: mean 52.0 instead of 50.0, a difference of +2.0" in text
    assert "- cgc_lora above lora_all (its paper): cgc_lora above lora_all: significant, +20.0" in text
    assert "- cgc_lora above nobody (nobody): no finished runs of nobody" in text
    assert "| 5 | 60.0 (" in text
    assert "| all | 70.0 (" in text
    assert "| a\\|model | 42.08 | – | published, in context |" in text
    columns = [line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("|")]
    assert sorted(set(columns)) == [4, 5, 6, 8]  # rates, tasks and orientation, sweep, costs and means
    values = json.loads(json.dumps(to_json(board), allow_nan=False))
    assert values["tables"][0]["seed_noise"]["difference"]["value"] == pytest.approx(0.02)
    assert values["tables"][0]["sweeps"][0]["points"][1]["mean"] == pytest.approx(0.7)
    assert values["orientation"][0]["value"] == 42.08
    names = [n for n in plots(board) if "sweep" in n]
    assert names == ["table1-sweep-rows.svg", "table1-sweep-rows-dark.svg"]


@pytest.mark.parametrize(("open_ends", "said"), [(("train.lr",), True), ((), False)])
def test_a_learning_rate_at_the_edge_is_named(toy_run: ToyRuns, open_ends: tuple[str, ...], said: bool) -> None:
    run = toy_run("lora_all", sky(0.5), train=STEPS)
    grid = tuple(Tried(lr=lr, mean=lr, run="x") for lr in (0.1, 0.2, 0.3))
    keep(run, Tuning(label="lora_all", split="dev", seed=0, grid=grid, chosen=0.3, open_ends=open_ends))
    text = render_markdown(build_leaderboard([run], "toys", "official"))
    assert ("no verdict is given: lora_all." in text) == said


def test_fields_that_were_chosen_with_the_learning_rate_are_listed(toy_run: ToyRuns) -> None:
    run = toy_run("lora_all", sky(0.5), train=STEPS)
    grid = tuple(Tried(lr=0.1, others={"method.gate_lr": g}, mean=g / 10, run="x") for g in (1, 3))
    found = {"chosen": 0.1, "chosen_others": {"method.gate_lr": 3}, "open_ends": ()}
    keep(run, Tuning(label="lora_all", split="dev", seed=0, grid=grid, **found))
    text = render_markdown(build_leaderboard([run], "toys", "official"))
    assert "Chosen together with the learning rate: lora_all: method.gate_lr=3." in text
    assert "| lora_all | **30.0** |" in text.replace("\u00a0", " ")


@pytest.mark.parametrize(("split", "said"), [("test", False), ("dev", True)])
def test_a_table_of_the_examples_that_learning_rates_were_chosen_on_says_so(
    toy_run: ToyRuns, split: str, said: bool
) -> None:
    run = toy_run("lora_all", sky(0.5), train=STEPS, eval=EvalConfig(split=split))
    grid = (Tried(lr=1e-3, mean=0.41, run="x"), Tried(lr=1e-2, mean=0.4, run="y"))
    keep(run, Tuning(label="lora_all", split="dev", seed=0, grid=grid, chosen=1e-3))
    text = render_markdown(build_leaderboard([run], "toys", "official"))
    assert ("chosen on the dev examples that this table reports" in text) == said


def test_the_reference_of_transfer_comes_from_the_file(
    toy_run: ToyRuns, plugin: Path, harness: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaderboards").mkdir()
    toy_run("lora_single", sky(0.5), train=STEPS)
    toy_run("cgc_lora", sky(0.7), train=STEPS)
    path = tmp_path / "leaderboards" / "toys.toml"
    path.write_text(FILE)
    assert "### Transfer" not in harness("leaderboard", "toys", "--out", tmp_path / "runs").out
    path.write_text(FILE.replace("[[row]]", 'reference = "lora_single"\n[[row]]', 1))
    text = harness("leaderboard", "toys", "--out", tmp_path / "runs").out
    assert "Gains in percentage points over lora_single, which trains each task alone" in text
    path.write_text(FILE.replace("[[row]]", 'reference = "lora_singel"\n[[row]]', 1))
    wrong = harness("leaderboard", "toys", "--out", tmp_path / "runs")
    assert wrong.status == 2
    assert "Did you mean 'lora_single'" in wrong.err


def test_a_reused_training_does_not_count_as_zero_seconds(toy_run: ToyRuns, file: BoardSpec, plugin: Path) -> None:
    run = toy_run("lora_all", sky(0.55), train=TrainConfig(steps=11))
    record = run.record()
    assert record is not None
    assert record.training is not None
    nothing = record.training.model_copy(update={"steps": 0, "seconds": 0.0, "tokens_per_second": None})
    run.write("record.json", record.model_copy(update={"training": nothing}))
    board = make(toy_run, file, run)
    row = next(r for r in board.tables[0].rows if r.reused)
    assert row.seconds is None
    text = render_markdown(board)
    assert text.count("| reused |") == 1  # in the costs
    assert "reused: every training stage was reused from the runs of another row" in text
    assert [r for r in board.tables[0].rows if r.seconds] != []


def test_rows_of_a_back_end_are_listed_for_orientation_and_never_in_a_table(
    toy_run: ToyRuns, file: BoardSpec, plugin: Path
) -> None:
    asked = {"backend": "lm-eval:dummy,model=a|b", "trained": False, "prompt": "chat", "shots": 1}
    board = make(toy_run, file, toy_run("no_finetune", sky(0.9), model="a|b (lm-eval:dummy)", **asked))
    assert [r.label for r in board.tables[0].rows] == ["cgc_lora", "lora_all", "majority"]
    assert len(board.tables) == 1
    text = render_markdown(board).replace("\u00a0", " ")
    shown = (
        r"\| a\\\|b \(lm-eval:dummy\) \| 90\.0 \| \d+\.\d to \d+\.\d \| toy data, test split, chat prompt, 1 shot \|"
    )
    assert re.search(shown, text)
    assert "| a\\|b (lm-eval:dummy) | 90.0 | 90.0 |" in text  # by task
    assert text.index("published, in context") < text.index("lm-eval:dummy")
    assert to_json(board)["orientation"][1]["mean"]["value"] == pytest.approx(0.9)


def test_a_back_end_row_asks_for_no_model_and_no_budget_and_is_made_once(tmp_path: Path, plugin: Path) -> None:
    path = tmp_path / "toys.toml"
    path.write_text(FILE + '[[row]]\nmethod = "no_finetune"\nbackend = "lm-eval:dummy"\nprompt = "chat"\nshots = 2\n')
    board = read_board(path)
    (entry,) = (e for e in entries(board) if e.config.backend)
    assert entry.seeds == (0,)
    asked = request(board, entry.config, 0).options
    assert {k: asked.get(k) for k in ("backend", "prompt", "shots", "model", "budget")} == {
        "backend": "lm-eval:dummy",
        "prompt": "chat",
        "shots": 2,
        "model": None,
        "budget": None,
    }


def test_a_claim_about_a_method_is_about_its_row_with_the_budget_of_the_others(
    toy_run: ToyRuns, file: BoardSpec, plugin: Path
) -> None:
    larger = [toy_run("lora_all", sky(0.9), seed=s, train=STEPS, budget="stored:304") for s in (0, 1)]
    text = render_markdown(make(toy_run, file, *larger)).replace("\u00a0", " ")
    (line,) = (line for line in text.splitlines() if "(its paper)" in line)
    assert "+20.0" in line  # cgc_lora has 70.0, lora_all 50.0, and the larger LoRA 90.0.
    assert "stored:304" not in line


def test_claims_are_not_tested_on_the_sample(toy_run: ToyRuns, file: BoardSpec, plugin: Path) -> None:
    runs = [toy_run(m, sky(p), sample=True, train=STEPS) for m, p in (("cgc_lora", 0.7), ("lora_all", 0.5))]
    text = render_markdown(build_leaderboard(runs, "toys", "official", file=file))
    assert "its paper" not in text
    assert "significant, +" not in text


@pytest.mark.long
def test_a_written_leaderboard_is_checked_with_its_pictures(
    toy_run: ToyRuns, file: BoardSpec, plugin: Path, tmp_path: Path
) -> None:
    board = Board(name="mine", folder=tmp_path / "boards", content=make(toy_run, file))
    paths = write_board(board)
    assert [p.name for p in paths] == ["mine", "mine.md", "mine.csv", "mine.json"]
    text = (tmp_path / "boards" / "mine.md").read_text()
    for picture in (tmp_path / "boards" / "mine").iterdir():
        assert f'"mine/{picture.name}"' in text
    assert text.count("prefers-color-scheme: dark") == len(list((tmp_path / "boards" / "mine").glob("*-dark.svg"))) > 0
    check_board(board)
    (tmp_path / "boards" / "mine" / "table9-old.svg").write_text("")
    write_board(board)
    assert not (tmp_path / "boards" / "mine" / "table9-old.svg").exists()
    (tmp_path / "boards" / "mine.md").write_text(text.replace("70.0", "71.0"))
    with pytest.raises(HarnessError, match="differs from the runs"):
        check_board(board)
    assert rendered(board, "markdown") == text


def test_a_file_shows_runs_on_its_own_model_and_data(
    toy_run: ToyRuns, plugin: Path, harness: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaderboards").mkdir()
    (tmp_path / "leaderboards" / "toys-large.toml").write_text(FILE.replace('"tiny"', '"org/large"'))
    toy_run("lora_all", sky(0.5), train=STEPS)
    toy_run("lora_all", sky(0.9), train=STEPS, model="org/large")
    toy_run("lora_all", sky(0.9), train=STEPS, model="org/large", eval=EvalConfig(split="dev"))
    out = tmp_path / "runs"
    large = harness("leaderboard", "toys-large", "--out", out)
    assert large.status == 0, large.err
    assert "## toy data, org/large, test split" in large.out
    assert "tiny" not in large.out
    assert "tiny" in harness("leaderboard", "toys", "--out", out).out
    wrong = harness("leaderboard", "toys-larg", "--out", out)
    assert wrong.status == 2
    assert "Did you mean 'toys-large'" in wrong.err


def test_a_page_says_where_runs_have_draws_only(toy_run: ToyRuns) -> None:
    runs = [toy_run(name, {"sky": [True, False] * 30}) for name in ("lora", "moe")]
    assert "bootstrap draws only" not in render_markdown(build_leaderboard(runs, "toys", "official"))
    without_deviations(runs[0])
    assert "bootstrap draws only" in render_markdown(build_leaderboard(runs, "toys", "official"))
