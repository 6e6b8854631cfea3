"""The board of a report: differences to any reference, reasons for missing values, matrices, text without script."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toy_report import Parsed, toy_board
from toy_runs import ToyRuns

from harness.config.spec import EvalConfig, RunSpec
from harness.errors import DataError, StoreError
from harness.leaderboard.build import build_leaderboard
from harness.leaderboard.report.board import board_json, missing_values
from harness.leaderboard.report.differences import against
from harness.leaderboard.report.make import ReportOptions, make_report
from harness.leaderboard.report.matrices import as_matrix, matrices_of, matrix_of_file
from harness.leaderboard.report.text import heat
from harness.method import ArtefactKind
from harness.scoring.significance import Pair, family
from harness.store.artefacts import write_artefact
from harness.store.record import EvaluationSettings
from harness.store.run_directory import RunDirectory
from harness.store.transfer import Transfer


@pytest.fixture
def toy_run(tmp_path: Path) -> ToyRuns:
    return ToyRuns(tmp_path / "runs")


def flags(p: float, seed: int) -> list[bool]:
    return [bool(x) for x in np.random.default_rng(seed).random(80) < p]


def runs(toy_run: ToyRuns) -> list[RunDirectory]:
    return [
        toy_run(method, {"sky": flags(p, 10 * s), "sea": flags(p, 10 * s + 1)}, seed=s)
        for method, p in (("lora", 0.4), ("moe", 0.7), ("cgc", 0.75))
        for s in range(3)
    ]


def test_the_differences_to_a_reference_are_one_family_as_if_it_had_been_named_beforehand(toy_run: ToyRuns) -> None:
    (table,) = build_leaderboard(runs(toy_run), "toys", "official").tables
    found = against(table)
    for reference, row in enumerate(table.rows):
        others = [other for other in table.rows if other is not row]
        shared = table.seed_variance
        means = family([Pair(a=o.group, b=row.group, shared=shared.get(None)) for o in others])
        tasks = family(
            [Pair(a=o.group, b=row.group, task=t, shared=shared.get(t)) for o in others for t in table.tasks]
        )
        assert found[reference][reference] is None
        for k, other in enumerate(others):
            cells = found[reference][table.rows.index(other)]
            for cell, expected in zip(cells, [means[k], *tasks[2 * k : 2 * k + 2]], strict=True):
                assert expected.estimate is not None
                e = expected.estimate
                values = [e.value, e.low, e.high, e.p, expected.p_adjusted, expected.mdd]
                assert cell[:6] == pytest.approx(values, abs=1e-12)
                assert cell[6] == expected.significant
                assert cell[7] is None


def test_a_reference_with_one_seed_is_not_tested_and_says_why(toy_run: ToyRuns) -> None:
    two = [*toy_run.seeds("moe", {"sky": flags(0.7, 1)}), toy_run("lora", {"sky": flags(0.4, 2)})]
    (table,) = build_leaderboard(two, "toys", "official").tables
    cells = against(table)[1][0]
    assert cells[0][4] is None
    assert cells[0][6] == 0
    assert cells[0][7] == "lora has one trained seed"


def test_a_missing_value_has_a_reason(toy_run: ToyRuns) -> None:
    run = toy_run("moe", {"sky": flags(0.7, 1), "sea": flags(0.7, 2)})
    scores = run.scores()
    assert scores is not None
    content = scores.model_dump(mode="json")
    content["official"]["tasks"]["sea"] |= {"value": None, "n": 3}
    content["official"] |= {"mean": None}
    (run.path / "scores.json").write_text(json.dumps(content))
    (table,) = build_leaderboard([run], "toys", "official").tables
    assert missing_values(table.rows[0], table) == {
        "sea": f"{run.name} has predictions of only 3 examples, not of all",
        "mean": "no score on sea",
    }


def test_an_ablation_has_the_row_of_its_method(toy_run: ToyRuns) -> None:
    made = [
        *toy_run.seeds("moe", {"sky": flags(0.7, 1)}),
        *toy_run.seeds("moe", {"sky": flags(0.6, 1)}, ablation="no_gate"),
        *toy_run.seeds("lora", {"sky": flags(0.1, 1)}),
    ]
    (table,) = board_json(build_leaderboard(made, "toys", "official"))["tables"]
    assert [(row["method"], row["parent"]) for row in table["rows"]] == [
        ("moe", None),
        ("moe+no_gate", 0),
        ("lora", None),
    ]
    assert table["rows"][0]["seed_means"] == pytest.approx([np.mean(flags(0.7, 1))] * 2)


def test_the_page_says_what_the_board_shows_without_its_script(tmp_path: Path) -> None:
    board = toy_board(tmp_path, {"lora": [flags(0.2, s) for s in range(3)], "moe": [flags(0.9, s) for s in range(3)]})
    page = Parsed(make_report(board, ReportOptions(examples=False)))
    text = " ".join(page.texts["bdi"])
    assert "Best of 2 ranked methods: moe, mean" in text
    assert "Its mean is significantly above that of lora." in text
    assert "moe above lora: significant" in text
    assert "accuracy of sky" in text
    assert "--no-examples" in text


def test_a_matrix_is_rows_columns_and_values_or_numbers_by_name() -> None:
    one = as_matrix({"rows": ["a"], "columns": ["b", "c"], "values": [[0.5, None]], "note": "gains"}, "toys", "x")
    assert (one.caption, one.rows, one.columns, one.values) == ("toys: gains", ("a",), ("b", "c"), ((0.5, None),))
    two = as_matrix({"a": {"b": 1, "c": 2}, "d": {"c": 3}}, "toys", "x")
    assert (two.rows, two.columns, two.values) == (("a", "d"), ("b", "c"), ((1, 2), (None, 3)))


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "{}", '{"a": 1}', '{"rows": ["a"], "columns": ["b"], "values": [[1, 2]]}', '{"a": {"b": "x"}}', "no"],
)
def test_what_is_not_a_matrix_is_an_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "toys.json").write_text(content)
    with pytest.raises(DataError, match=r"--matrix .*toys\.json: "):
        matrix_of_file(tmp_path / "toys.json")


def test_the_shade_of_a_cell_is_its_share_of_the_largest_value_and_a_missing_one_has_none() -> None:
    found = heat(as_matrix({"a": {"x": 4.0, "y": -2.0, "z": None, "v": 0.004}}, "toys", "here"))
    cells = found.lines[0]["cells"]
    assert [cell["look"] for cell in cells] == ["plus w10", "minus w5", "missing", "plus w0"]
    assert [cell["text"] for cell in cells] == ["4.0", "-2.0", "–", "0.004"]


def test_the_matrices_of_a_run_are_those_it_has_saved_and_its_transfer(toy_run: ToyRuns) -> None:
    run = toy_run("moe", {"sky": flags(0.7, 1), "sea": flags(0.6, 2)})
    value = {"rows": ["sky"], "columns": ["sea"], "values": [[0.5]], "title": "Affinity"}
    write_artefact(run.artefacts, "affinity", value, ArtefactKind.MATRIX)
    write_artefact(run.artefacts, "notes", {"a": 1}, ArtefactKind.OTHER)
    scores = run.scores()
    assert scores is not None
    settings = EvaluationSettings(run_id="1", eval=EvalConfig(), method={}, suite=run_spec(run).suite)
    found = Transfer(settings=settings, tasks=("sky", "sea"), adapters={"sky": scores, "sea": scores}, base=scores)
    (run.path / "transfer" / "x").mkdir(parents=True)
    RunDirectory(run.path / "transfer" / "x").write("transfer.json", found)
    (table,) = build_leaderboard([run], "toys", "official").tables
    affinity, transfer = matrices_of(table.rows[0])
    assert affinity.caption == f"Affinity, {run.name}"
    assert affinity.values == ((0.5,),)
    assert transfer.rows == ("base model", "sky", "sea")
    assert transfer.values == ((0.0, 0.0),) * 3
    assert transfer.numbers is not None
    assert transfer.numbers[1] == pytest.approx([100 * np.mean(flags(0.7, 1)), 100 * np.mean(flags(0.6, 2))])


def test_an_artefact_that_is_not_a_matrix_is_an_error_that_names_its_file(toy_run: ToyRuns) -> None:
    run = toy_run("moe", {"sky": flags(0.7, 1)})
    write_artefact(run.artefacts, "affinity", [1, 2], ArtefactKind.MATRIX)
    (table,) = build_leaderboard([run], "toys", "official").tables
    with pytest.raises(StoreError, match=r"affinity\.json: a matrix is expected"):
        list(matrices_of(table.rows[0]))


def run_spec(run: RunDirectory) -> RunSpec:
    spec = run.spec()
    assert spec is not None
    return spec
