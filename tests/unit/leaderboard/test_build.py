"""Leaderboards of toy runs: their tables, rows, ranks, marks and exports."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
from toy_runs import ToyRuns

from harness.config.spec import BalanceSpec, EvalConfig, TrainConfig
from harness.leaderboard.build import build_leaderboard
from harness.leaderboard.export import to_csv, to_json
from harness.leaderboard.markdown import render_markdown as render
from harness.leaderboard.tables import Kind, Leaderboard
from harness.store.run_directory import RunDirectory
from harness.task import ParameterLimit

Flags = list[bool]


def render_markdown(board: Leaderboard) -> str:
    """With plain spaces instead of non-breaking ones."""
    return render(board).replace("\u00a0", " ")


@pytest.fixture
def toy_run(tmp_path: Path) -> ToyRuns:
    return ToyRuns(tmp_path / "runs")


def share(p: float, n: int = 200, seed: int = 0) -> Flags:
    """n predictions, a share p of them correct; those of a smaller share are also correct in a larger one."""
    return [bool(x) for x in np.random.default_rng(seed).permutation(n) < p * n]


def sky(p: float) -> dict[str, Flags]:
    return {"sky": share(p), "sea": share(p, seed=1)}


def labels(runs: list[RunDirectory]) -> list[str]:
    (table,) = build_leaderboard(runs, "toys", "official").tables
    return [row.label for row in table.rows]


def test_rows_are_ordered_by_mean_and_only_trained_ones_are_ranked(toy_run: ToyRuns) -> None:
    runs = [
        toy_run("lora", sky(0.5)),
        toy_run("moe", sky(0.7)),
        toy_run("majority", sky(0.6), model=None),
        toy_run("as_it_is", sky(0.8), trained=False),
    ]
    (table,) = build_leaderboard(runs, "toys", "official").tables
    assert [(r.label, r.rank, r.kind) for r in table.rows] == [
        ("as_it_is", None, Kind.UNTRAINED),
        ("moe", 1, Kind.TRAINED),
        ("majority", None, Kind.BASELINE),
        ("lora", 2, Kind.TRAINED),
    ]


def test_runs_that_differ_in_the_seed_are_one_row(toy_run: ToyRuns) -> None:
    runs = [toy_run("lora", {"sky": share(p, seed=i)}, seed=i) for i, p in enumerate((0.5, 0.6, 0.7))]
    (table,) = build_leaderboard([*runs, runs[0]], "toys", "official").tables
    (row,) = table.rows
    assert len(row.group.runs) == 3
    assert row.mean.value == pytest.approx(0.6)
    assert row.mean.sd == pytest.approx(0.1)
    assert row.mean.estimate is not None
    assert row.mean.estimate.low < 0.5
    assert row.mean.estimate.high > 0.7


def test_rows_with_other_balancers_are_ranked_together_and_named_as_on_the_command_line(toy_run: ToyRuns) -> None:
    famo = BalanceSpec(name="famo", version=1)
    balances = {0.5: None, 0.6: famo, 0.7: famo.model_copy(update={"fields": {"lr": 0.05}})}
    runs = [toy_run("lora", sky(p), train=TrainConfig(balance=balance)) for p, balance in balances.items()]
    (table,) = build_leaderboard(runs, "toys", "official").tables
    assert [(row.label, row.rank) for row in table.rows] == [
        ("lora train.balance=famo balance.lr=0.05", 1),
        ("lora train.balance=famo", 2),
        ("lora train.balance=none", 3),
    ]


def test_an_ablation_is_nested_under_its_method_with_the_difference(toy_run: ToyRuns) -> None:
    runs = [
        *toy_run.seeds("moe", sky(0.6), ablation="no_gate"),
        *toy_run.seeds("lora", sky(0.65)),
        *toy_run.seeds("moe", sky(0.7)),
        *toy_run.seeds("other", sky(0.1), ablation="alone"),
    ]
    (table,) = build_leaderboard(runs, "toys", "official").tables
    assert [(r.label, r.nested) for r in table.rows] == [
        ("moe", False),
        ("moe+no_gate", True),
        ("lora", False),
        ("other+alone", False),
    ]
    delta = table.rows[1].delta
    assert delta is not None
    assert delta.estimate is not None
    assert delta.estimate.value == pytest.approx(-0.1)
    assert table.rows[1].rank is None
    text = render_markdown(build_leaderboard(runs, "toys", "official"))
    assert "&nbsp;moe+no_gate" in text
    assert re.search(r"\*\*-10\.0 \(-\d+\.\d to -\d+\.\d\)\*\*", text)
    assert "moe+no_gate below moe: significant" in text


def test_an_ablation_is_nested_under_the_row_that_is_most_like_it(toy_run: ToyRuns) -> None:
    fast, slow = TrainConfig(lr=1e-2), TrainConfig(lr=1e-4)
    runs = [
        toy_run("moe", sky(0.7), train=fast),
        toy_run("moe", sky(0.6), train=slow),
        toy_run("moe", sky(0.5), ablation="no_gate", train=slow),
    ]
    (table,) = build_leaderboard(runs, "toys", "official").tables
    assert table.rows[2].nested
    assert table.rows[2].delta is not None
    assert table.rows[2].delta.estimate is not None
    assert table.rows[2].delta.estimate.value == pytest.approx(-0.1)


def test_other_models_splits_prompts_limits_and_data_are_in_tables_of_their_own(toy_run: ToyRuns) -> None:
    runs = [
        toy_run("lora", sky(0.5)),
        toy_run("moe", sky(0.5)),
        toy_run("lora", sky(0.5), model="larger"),
        toy_run("lora", sky(0.5), prompt="chat"),
        toy_run("lora", sky(0.5), eval=EvalConfig(split="dev")),
        toy_run("lora", sky(0.5), eval=EvalConfig(per_task=10)),
        toy_run("lora", sky(0.5), data="other"),
        toy_run("lora", sky(0.5), shots=2),
        toy_run("lora", {"sky": share(0.5)}),
        toy_run("majority", sky(0.2), model=None),
    ]
    tables = build_leaderboard(runs, "toys", "official").tables
    assert sorted(len(t.rows) for t in tables) == [1] * 6 + [2, 3]
    with_majority = [t.spec.model.label for t in tables if t.spec.model and any(not r.group.spec.model for r in t.rows)]
    assert sorted(with_majority) == ["larger", "tiny"]


def test_the_title_of_a_table_says_what_is_evaluated_and_how(toy_run: ToyRuns) -> None:
    run = toy_run("lora", sky(0.5), shots=1, eval=EvalConfig(per_task=10))
    title = "test split, 10 examples of each task, plain prompt, 1 shot\n"
    assert title in render_markdown(build_leaderboard([run], "toys", "official"))


def test_rows_without_a_model_have_a_table_when_they_are_all_there_is(toy_run: ToyRuns) -> None:
    board = build_leaderboard([toy_run("majority", sky(0.2), model=None)], "toys", "official")
    assert len(board.tables) == 1
    assert "no base model" in render_markdown(board)


def test_the_best_is_bold_and_what_does_not_differ_significantly_is_marked(toy_run: ToyRuns) -> None:
    runs = [*toy_run.seeds("moe", sky(0.7)), *toy_run.seeds("poor", sky(0.4))]
    board = build_leaderboard(runs, "toys", "official")
    moe, poor = board.tables[0].rows
    assert (moe.mean.best, moe.cells["sky"].best, poor.mean.best) == (True, True, False)
    assert (moe.mean.tied, poor.mean.tied) == (False, False)
    text = render_markdown(board)
    assert "**70.0**" in text
    assert "moe above poor: significant, +30.0" in text


def test_rows_of_one_seed_are_ranked_and_not_tested(toy_run: ToyRuns) -> None:
    board = build_leaderboard([toy_run("moe", sky(0.7)), toy_run("poor", sky(0.4))], "toys", "official")
    text = render_markdown(board)
    assert "moe above poor: not tested (moe has one trained seed), +30.0" in text
    assert [r.rank for r in board.tables[0].rows] == [1, 2]
    assert "40.0≈" in text


def test_the_best_row_against_the_others_is_one_family_of_tests(toy_run: ToyRuns) -> None:
    runs = [run for i, p in enumerate((0.7, 0.4, 0.3, 0.2)) for run in toy_run.seeds(f"m{i}", sky(p))]
    text = render_markdown(build_leaderboard(runs, "toys", "official"))
    assert text.count("after correction for 3 tests") == 3


def test_rows_with_few_seeds_share_the_variance_between_seeds(toy_run: ToyRuns) -> None:
    runs = [
        toy_run(f"m{i}", {"sky": share(0.5 + 0.01 * s, seed=7), "sea": share(0.5, seed=8)}, seed=s)
        for i in range(4)
        for s in range(2)
    ]
    (table,) = build_leaderboard(runs, "toys", "official").tables
    shared = table.seed_variance[None]
    assert (shared.n_rows, shared.df) == (4, 4)
    assert "shared over 4 rows" in render_markdown(build_leaderboard(runs, "toys", "official"))


def test_another_effort_is_listed_without_rank_and_verdict(toy_run: ToyRuns) -> None:
    """The same question after other training: nobody can tell whether the method or the training is better."""
    usual, more = TrainConfig(steps=20), TrainConfig(steps=60)
    runs = [
        *toy_run.seeds("moe", sky(0.7), train=more),
        *toy_run.seeds("lora", sky(0.5), train=usual),
        *toy_run.seeds("poly", sky(0.4), train=usual),
    ]
    (table,) = build_leaderboard(runs, "toys", "official").tables
    assert [(r.label, r.rank) for r in table.rows] == [("moe", None), ("lora", 1), ("poly", 2)]
    text = render_markdown(build_leaderboard(runs, "toys", "official"))
    assert "moe has no rank: different effort: train.steps 60 and 20" in text
    assert "moe above" not in text


def test_learning_rates_that_were_tried_by_hand_have_no_rank(toy_run: ToyRuns) -> None:
    runs = [run for lr in (1e-3, 1e-2) for run in toy_run.seeds("moe", sky(0.5), train=TrainConfig(lr=lr))]
    runs += toy_run.seeds("lora", sky(0.4))
    (table,) = build_leaderboard(runs, "toys", "official").tables
    assert [(r.label, r.rank) for r in table.rows] == [
        ("moe train.lr=0.001", None),
        ("moe train.lr=0.01", None),
        ("lora", 1),
    ]


def test_presets_of_papers_have_a_table_of_their_own(toy_run: ToyRuns) -> None:
    runs = [
        *toy_run.seeds("moe", sky(0.7), preset="paper", train=TrainConfig(steps=8000)),
        *toy_run.seeds("moe", sky(0.6)),
        *toy_run.seeds("lora", sky(0.5)),
        toy_run("majority", sky(0.2), model=None),
    ]
    tables = build_leaderboard(runs, "toys", "official").tables
    assert [[r.label for r in t.rows] for t in tables] == [["moe", "lora", "majority"], ["moe (paper)", "majority"]]


def test_an_ablation_needs_a_parent_with_the_same_effort(toy_run: ToyRuns) -> None:
    runs = [
        *toy_run.seeds("moe", sky(0.7), train=TrainConfig(steps=2)),
        *toy_run.seeds("moe", sky(0.5), ablation="no_gate", train=TrainConfig(steps=60)),
    ]
    (table,) = build_leaderboard(runs, "toys", "official").tables
    assert [(r.label, r.nested, r.delta) for r in table.rows] == [("moe", False, None), ("moe+no_gate", False, None)]


def test_what_an_ablation_changes_besides_its_name_is_listed(toy_run: ToyRuns) -> None:
    runs = [
        *toy_run.seeds("moe", sky(0.7), budget="active:4"),
        *toy_run.seeds("moe", sky(0.5), ablation="no_gate", train=TrainConfig(lr=1e-2), n=3),
    ]
    text = render_markdown(build_leaderboard(runs, "toys", "official"))
    assert "moe+no_gate differs from its method also in: budget active:4 → none, lr 0.001 → 0.01, seeds 2 → 3" in text
    assert "Δ not tested: different effort: budget – and active:4" in text


def test_a_table_in_which_no_trained_method_beats_a_baseline_says_so_first(toy_run: ToyRuns) -> None:
    runs = [*toy_run.seeds("moe", sky(0.5)), toy_run("nearest", sky(0.6), model=None)]
    line = "> No trained method is significantly above nearest (60.0), which has no language model."
    text = render_markdown(build_leaderboard(runs, "toys", "official"))
    assert line in text
    assert text.index(line) < text.index("| moe")
    better = [*runs, *toy_run.seeds("lora", sky(0.9))]
    assert line not in render_markdown(build_leaderboard(better, "toys", "official"))


def test_equal_methods_are_tied(toy_run: ToyRuns) -> None:
    runs = [
        *toy_run.seeds("moe", {"sky": share(0.61, seed=3)}),
        *toy_run.seeds("lora", {"sky": share(0.60, seed=4)}),
    ]
    board = build_leaderboard(runs, "toys", "official")
    assert [r.mean.tied for r in board.tables[0].rows] == [False, True]
    assert "60.0≈" in render_markdown(board)
    assert "moe above lora: not significant" in render_markdown(board)


def test_the_sample_names_no_winner(toy_run: ToyRuns) -> None:
    runs = [toy_run("moe", sky(0.7), sample=True), toy_run("lora", sky(0.4), sample=True)]
    text = render_markdown(build_leaderboard(runs, "toys", "official", reference="lora"))
    assert "embedded sample, not toys" in text
    assert "**70.0**" not in text
    assert "≈" not in text
    assert "significant" not in text
    assert "tasks lose" not in text
    assert "| # |" not in text
    assert re.findall(r"^\| moe \| [^|]*\| 0 of 2 \| \+30\.0 \|", text, flags=re.MULTILINE)


def test_limited_and_unfinished_runs_are_named_and_never_ranked(toy_run: ToyRuns) -> None:
    runs = [
        toy_run("moe", sky(0.7), train=TrainConfig(per_task=5)),
        toy_run("lora", sky(0.4)),
        toy_run("slow", sky(0.4), finished=False),
    ]
    board = build_leaderboard(runs, "toys", "official")
    assert [(r.label, r.rank, r.mean.best) for r in board.tables[0].rows] == [("moe", None, False), ("lora", 1, True)]
    text = render_markdown(board)
    assert "moe (limited)" in text
    assert f"- {runs[2].name}: stopped" in text
    other = build_leaderboard(runs, "toys", "readme")
    assert other.tables == ()
    assert {u.reason for u in other.unfinished} == {"stopped", "no scores under the protocol readme"}
    assert build_leaderboard(runs, "another suite", "official").unfinished == ()


def test_tasks_without_training_examples_are_marked(toy_run: ToyRuns) -> None:
    runs = [toy_run("moe", sky(0.5), n_train={"sky": 9, "sea": 0})]
    (row,) = build_leaderboard(runs, "toys", "official").tables[0].rows
    assert (row.cells["sky"].no_train, row.cells["sea"].no_train) == (False, True)
    assert "**50.0**°" in render_markdown(build_leaderboard(runs, "toys", "official"))


def test_a_task_without_a_score_prints_a_dash_and_leaves_no_mean(toy_run: ToyRuns) -> None:
    runs = [toy_run("moe", sky(0.5))]
    scores = runs[0].scores()
    assert scores is not None
    table = scores.root["official"]
    tasks = {**table.tasks, "sea": table.tasks["sea"].model_copy(update={"value": None, "ci95": None})}
    broken = table.model_copy(update={"tasks": tasks, "mean": None, "mean_ci95": None})
    runs[0].write_scores(type(scores)({"official": broken}))
    board = build_leaderboard(runs, "toys", "official")
    (row,) = board.tables[0].rows
    assert (row.mean.value, row.mean.estimate, row.rank, row.cells["sea"].value) == (None, None, None, None)
    text = render_markdown(board)
    assert re.search(r"^\| moe \| – \| – \|", text, flags=re.MULTILINE)
    assert re.search(r"^\| moe \| – \| \*\*50\.0\*\* \| – \|$", text, flags=re.MULTILINE)


def test_rows_of_one_name_show_what_differs(toy_run: ToyRuns) -> None:
    assert labels(
        [toy_run("lora", sky(0.6)), toy_run("lora", sky(0.5), budget="stored:8"), toy_run("moe", sky(0.4))]
    ) == ["lora", "lora budget=stored:8", "moe"]


def test_fields_that_follow_from_the_budget_are_not_in_the_name_of_a_row(toy_run: ToyRuns) -> None:
    runs = [
        toy_run("moe", sky(0.9), budget="active:4"),
        toy_run("lora", sky(0.8), budget="active:4"),
        toy_run("lora", sky(0.7), budget="stored:8", fields={"rank": 8, "alpha": 8.0}),
        toy_run("lora", sky(0.6), budget="stored:8", fields={"rank": 8, "alpha": 16.0}),
    ]
    stored = "lora method.alpha={} budget=stored:8"
    assert labels(runs) == ["moe", "lora", stored.format(8.0), stored.format(16.0)]


def test_transfer_counts_the_tasks_that_lose_against_the_reference(toy_run: ToyRuns) -> None:
    runs = [
        *toy_run.seeds("single", {"sky": share(0.5), "sea": share(0.5)}),
        *toy_run.seeds("moe", {"sky": share(0.8), "sea": share(0.3)}),
    ]
    board = build_leaderboard(runs, "toys", "official", reference="single")
    (row,) = board.tables[0].transfers
    assert (row.label, row.reference) == ("moe", "single")
    gain = row.gains.gains["sky"].estimate
    assert gain is not None
    assert gain.value == pytest.approx(0.3)
    assert (row.gains.losing, row.gains.losing_significantly) == (("sea",), ("sea",))
    assert re.search(
        r"^\| moe \| \+5\.0 \(.*\) \| 1 of 2 \(1 significantly\) \| \*\*\+30\.0\*\* \| \*\*-20\.0\*\* \|$",
        render_markdown(board),
        flags=re.M,
    )
    (words,) = to_json(board)["tables"][0]["transfer"]
    assert "1 of 2 tasks lose (1 significantly), most sea -20.0" in words


def test_runs_without_draws_have_values_and_no_intervals(toy_run: ToyRuns) -> None:
    runs = [toy_run("moe", sky(0.7)), toy_run("lora", sky(0.4))]
    for run in runs:
        (run.path / "bootstrap.npz").unlink()
    board = build_leaderboard(runs, "toys", "official")
    assert [(r.mean.value, r.mean.estimate) for r in board.tables[0].rows] == [(0.7, None), (0.4, None)]
    assert "significant" not in "".join(line for line in render_markdown(board).splitlines() if "above" in line)


def test_names_from_outside_cannot_break_the_table_or_bring_markup(toy_run: ToyRuns) -> None:
    evil = "a|b\n<script>x</script> [click](http://x) **bold** `code`"
    text = render_markdown(build_leaderboard([toy_run("moe", sky(0.5), data=evil, model=evil)], "toys", "official"))
    assert "<script>" not in text
    assert "\\[click\\]" in text
    columns = [line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("|")]
    assert columns == [8] * 3 + [5] * 3 + [8] * 3  # means, tasks, costs


def test_a_suite_with_a_limit_on_parameters_has_a_column_that_says_who_keeps_to_it(toy_run: ToyRuns) -> None:
    runs = [toy_run("moe", sky(0.7), percent=1.5), toy_run("lora", sky(0.4), percent=0.5)]
    without = render_markdown(build_leaderboard(runs, "toys", "official"))
    assert "≤" not in without
    assert "at most" not in without
    board = build_leaderboard(runs, "toys", "official", parameter_limit=ParameterLimit(percent=1.0, source="Toy rule"))
    text = render_markdown(board)
    assert "| stored | % of base | ≤ 1 % | active |" in text
    assert re.search(r"^\| moe \| 4\.1 k \| 1\.5 \| no \|", text, flags=re.MULTILINE)
    assert re.search(r"^\| lora \| 4\.1 k \| 0\.5 \| yes \|", text, flags=re.MULTILINE)
    assert "(Toy rule: at most 1 %)" in text
    assert to_json(board)["parameter_limit"] == {"percent": 1.0, "source": "Toy rule"}


def test_the_csv_of_a_leaderboard_pivots_to_methods_by_tasks(toy_run: ToyRuns) -> None:
    runs = [toy_run("moe", sky(0.7)), toy_run("lora", sky(0.4))]
    frame = pandas.read_csv(io.StringIO(to_csv(build_leaderboard(runs, "toys", "official"))))
    table = frame.pivot(index="method", columns="task", values="value")
    assert table.loc["moe", "sky"] == pytest.approx(0.7)
    assert table.loc["lora", "mean"] == pytest.approx(0.4)
    assert to_csv(build_leaderboard([], "toys", "official")) == ",".join(frame.columns) + "\n"


def test_csv_and_json_hold_the_same_numbers(toy_run: ToyRuns) -> None:
    runs = [toy_run("moe", sky(0.7), data="=cmd()"), toy_run("lora", sky(0.4), data="=cmd()")]
    board = build_leaderboard(runs, "toys", "official")
    lines = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert [(x["method"], x["task"], float(x["value"])) for x in lines] == [
        (m, t, v) for m, v in (("moe", 0.7), ("lora", 0.4)) for t in ("mean", "sky", "sea")
    ]
    assert {x["data"] for x in lines} == {"'=cmd()"}
    values = json.loads(json.dumps(to_json(board), allow_nan=False))
    rows = values["tables"][0]["rows"]
    assert [(r["method"], r["rank"], r["mean"]["value"]) for r in rows] == [("moe", 1, 0.7), ("lora", 2, 0.4)]
    assert float(lines[0]["low"]) == rows[0]["mean"]["ci95"][0]
