"""What a leaderboard's file may contain, and the entries that it lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.config.options import OPTIONS
from harness.errors import UsageError
from harness.registry import suite_class
from harness.sweep.entries import Part, entries, request
from harness.sweep.spec import RowSpec, read_board


def test_a_file_names_rows_sweeps_baselines_and_null_rows(board_file: Callable[[str], Path], plugin: Path) -> None:
    path = board_file("""
tune = { lr = [1e-2, 1e-3] }
baselines = ["majority"]
null = { method = "toy_lora", seeds = [7, 8] }
[[row]]
method = "toy_lora"
[[row]]
method = "moe_lora"
preset = "paper"
[[sweep]]
name = "few"
method = "toy_lora"
tune = false
grid = { train.per_task = [4, "none"], train.loss = ["token", "task"] }
""")
    found = list(entries(read_board(path)))
    assert [(e.part, e.seeds, e.tuned_as is not None) for e in found[:4]] == [
        (Part.BASELINE, (0,), False),
        (Part.ROW, (0, 1), True),
        (Part.ROW, (0, 1), False),
        (Part.NULL, (7, 8), True),
    ]
    points = found[4:]
    assert [dict(e.point) for e in points] == [
        {"train.per_task": n, "train.loss": loss} for n in ("4", "None") for loss in ("token", "task")
    ]
    assert {e.tuned_as for e in points if e.tuned_as is None} == set()
    assert all(e.tuned_as is not None and e.tuned_as.label == "toy_lora" for e in points)
    assert points[2].config.settings["train.per_task"] is None
    paper = request(read_board(path), found[2].config, 0)
    assert "budget" not in paper.options
    assert not any(key.startswith("train.") for key in paper.keys)
    assert paper.keys["eval.per_task"] == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "compares nothing"),
        ("rows = []", "Did you mean 'row'"),
        ("[[row]]\nmethod = 'lora_all'\nrank = 3", "row.1.rank"),
        ("tune = { lr = [] }\n[[row]]\nmethod = 'lora_all'", "tune.lr"),
        ("null = { method = 'lora_all', seeds = [1] }\n[[row]]\nmethod = 'lora_all'", "of its own"),
        ("[[orientation]]\nname = 'x'\nvalue = 101\nnote = ''", "orientation.1.value"),
        ("row = 3 3", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_key_and_value(
    board_file: Callable[[str], Path], text: str, said: str
) -> None:
    with pytest.raises(UsageError, match=r"toys\.toml") as error:
        read_board(board_file(text))
    assert said in str(error.value)


def test_a_row_s_fields_are_options_of_a_run_and_all_of_them_reach_it(
    board_file: Callable[[str], Path], plugin: Path
) -> None:
    assert set(RowSpec.model_fields) - {"settings"} < set(OPTIONS)
    board = read_board(
        board_file("""
tasks = "colour,last"
[[row]]
method = "cgc_lora"
ablation = "no_gate"
clusters = "kind"
shots = 1
[[row]]
method = "no_finetune"
backend = "lm-eval:dummy"
clusters = "kind"
""")
    )
    trained, served = (dict(request(board, row, 7).options) for row in board.row)
    same = {"suite": "toys", "tasks": "colour,last", "seed": 7, "prompt": "plain"}
    options = {"ablation": "no_gate", "clusters": "kind", "shots": 1, "budget": "active:4", "model": board.model}
    assert trained == same | options | {"method": "cgc_lora"}
    assert served == same | {"method": "no_finetune", "backend": "lm-eval:dummy", "shots": 0}


def test_a_file_without_a_model_uses_the_suite_s_own(tmp_path: Path) -> None:
    path = tmp_path / "plain.toml"
    path.write_text('suite = "promptcblue"\nbaselines = ["majority"]\n')
    assert read_board(path).model == suite_class("promptcblue").default_model


def with_setting(path: Path, setting: str) -> Path:
    path.write_text(path.read_text().replace("settings = { ", f"settings = {{ {setting}, "))
    return path


def test_a_file_s_fields_of_methods_reach_only_the_methods_that_have_them(board_file: Callable[[str], Path]) -> None:
    path = board_file("""
baselines = ["majority", "no_finetune"]
[[row]]
method = "lora_all"
[[row]]
method = "cgc_lora"
settings.method.targets = "all"
""")
    board = read_board(with_setting(path, "method.targets = 'model.layers.1.*'"))
    given = {e.config.method: request(board, e.config, 0).keys.get("method.targets") for e in entries(board)}
    assert given == {"majority": None, "no_finetune": None, "lora_all": "model.layers.1.*", "cgc_lora": "all"}


def test_a_field_that_no_method_of_the_file_has_reaches_all_so_that_their_runs_name_it(
    board_file: Callable[[str], Path],
) -> None:
    path = board_file("[[row]]\nmethod = 'lora_all'")
    board = read_board(with_setting(path, "method.target = 'all'"))
    [entry] = entries(board)
    assert request(board, entry.config, 0).keys["method.target"] == "all"
