"""The table, the CSV file and the picture of a transfer matrix."""

from __future__ import annotations

import csv

import pytest

from harness.config.spec import EvalConfig, SuiteSpec
from harness.data.routes import FixedRoute
from harness.errors import HarnessError, UsageError
from harness.leaderboard.transfer import csv_of, protocol_of, render_transfer, transfer_pictures
from harness.store.record import EvaluationSettings, ProtocolScores, Scores, TaskScore
from harness.store.transfer import Transfer

TASKS = ("copy", "sort_$")


def scores(*values: float | None) -> Scores:
    tasks = {
        task: TaskScore(
            headline="accuracy",
            value=value,
            ci95=None if value is None else (value / 2, value),
            metrics={},
            n=7,
            n_train=3,
            n_unparsed=0,
            n_cut=0,
        )
        for task, value in zip(TASKS, values, strict=True)
    }
    return Scores({"official": ProtocolScores(mean=None, mean_of=(), tasks=tasks)})


def matrix(*lines: Scores) -> Transfer:
    base, *own = lines
    suite = SuiteSpec(name="toys", version=1, tasks=dict.fromkeys(TASKS, 1))
    settings = EvaluationSettings(run_id="ab12", eval=EvalConfig(), method={}, suite=suite)
    return Transfer(settings=settings, tasks=TASKS, adapters=dict(zip(TASKS, own, strict=True)), base=base)


FOUND = matrix(scores(0.1, 0.2), scores(0.9, 0.25), scores(0.05, None))


def test_a_line_is_the_task_whose_weights_are_used_and_a_column_the_evaluated_one() -> None:
    lines = render_transfer(FOUND, "official").splitlines()
    assert lines[1].split() == ["weights", "of", "1", "2"]
    assert [line.split() for line in lines[3:]] == [
        ["base", "model", "10.0", "20.0"],
        ["1", "copy", "90.0", "25.0"],
        ["2", "sort_$", "5.0", "–"],
    ]


def test_the_csv_file_has_every_pair_and_the_base_model() -> None:
    lines = list(csv.DictReader(csv_of(FOUND).decode().splitlines()))
    assert [(line["weights"], line["task"], line["value"], line["low"]) for line in lines] == [
        ("", "copy", "0.1", "0.05"),
        ("", "sort_$", "0.2", "0.1"),
        ("copy", "copy", "0.9", "0.45"),
        ("copy", "sort_$", "0.25", "0.125"),
        ("sort_$", "copy", "0.05", "0.025"),
        ("sort_$", "sort_$", "", ""),
    ]
    assert {line["n"] for line in lines} == {"7"}


def test_the_picture_has_the_scores_as_numbers_and_equal_bytes_for_equal_values() -> None:
    files = transfer_pictures(FOUND, "official", "a $ run")
    assert set(files) == {"transfer.svg", "transfer-dark.svg"}
    text = files["transfer.svg"].decode()
    for number in ("10.0", "90.0", "5.0"):
        assert f">{number}<" in text
    assert files == transfer_pictures(FOUND, "official", "a $ run")


def test_without_any_score_there_is_no_picture() -> None:
    assert transfer_pictures(matrix(*[scores(None, None)] * 3), "official", "run") == {}


def test_an_unknown_protocol_is_named() -> None:
    assert protocol_of(FOUND, None) == "official"
    with pytest.raises(UsageError, match="unknown protocol 'offical'"):
        protocol_of(FOUND, "offical")


def test_with_a_fixed_route_every_task_uses_the_weights_of_one() -> None:
    routes = FixedRoute(TASKS, "sort_$")
    assert [routes.index(task) for task in (*TASKS, "new")] == [1, 1, 1]
    assert routes.name(1) == "sort_$"
    with pytest.raises(HarnessError, match="no route for task 'other'"):
        FixedRoute(TASKS, "other").index("copy")
