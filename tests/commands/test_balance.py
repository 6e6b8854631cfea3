"""``train.balance`` through the command: what it records, what it refuses, and how its runs are compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from step_hook import Crash, crash_after

Command = Callable[..., Any]


def log(folder: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (Path(folder) / "train.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def keys(*assignments: str) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def test_a_run_logs_the_weights_of_every_step_and_records_its_balancer(toy_run: Command) -> None:
    settings = keys("train.balance=famo", "balance.lr=0.5", "train.loss=task", "train.lr=0.01")
    done = toy_run("--method", "lora_all", *settings, "--json")
    assert done.status == 0, done.err
    assert done.json["record"]["spec"]["train"]["balance"] == {"name": "famo", "version": 1, "fields": {"lr": 0.5}}
    lines = log(done.json["directory"])
    assert len(lines) == 4
    for line in lines:
        assert line["weights"].keys() == line["tasks"].keys()
        assert sum(line["weights"].values()) == pytest.approx(len(line["weights"]), abs=1e-4)
    plain = toy_run("--method", "lora_all", *keys("train.loss=task", "train.lr=0.01"), "--json").json
    assert "balance" not in plain["record"]["spec"]["train"] or plain["record"]["spec"]["train"]["balance"] is None
    assert plain["record"]["run_id"] != done.json["record"]["run_id"]
    assert all("weights" not in line for line in log(plain["directory"]))


@pytest.mark.long
def test_a_balancer_may_read_dev_and_warns_where_dev_is_evaluated(toy_run: Command) -> None:
    settings = keys("train.balance=coba", "balance.warmup=1", "train.eval_rows=2")
    done = toy_run("--method", "cgc_lora", *settings, "--json")
    assert done.status == 0, done.err
    assert "biased" not in done.err
    weights = [line["weights"] for line in log(done.json["directory"])]
    assert set(weights[0].values()) == {1.0}
    assert len(set(weights[-1].values())) > 1
    on_dev = toy_run("--method", "cgc_lora", *settings, *keys("eval.split=dev"), "--seed", 1)
    assert "train.balance=coba uses dev for training, and dev is evaluated too" in on_dev.err


@pytest.mark.long
def test_a_balanced_run_that_crashed_ends_with_the_same_bits(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = keys("train.balance=uncertainty", "balance.lr=0.5", "train.checkpoint_steps=2")
    command = ["--method", "lora_all", *settings, "--json"]
    whole = toy_run(*command).json
    expected = log(whole["directory"]), (Path(whole["directory"]) / "adapter" / "adapter.safetensors").read_bytes()
    shutil.rmtree(whole["directory"])
    with monkeypatch.context() as patch:
        crash_after(patch, {3})
        with pytest.raises(Crash):
            toy_run(*command)
    again = toy_run(*command).json
    found = log(again["directory"]), (Path(again["directory"]) / "adapter" / "adapter.safetensors").read_bytes()
    assert found == expected


@pytest.mark.long
def test_gradients_may_be_combined_and_a_crash_changes_nothing(
    toy_run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchjd")
    command = ["--method", "lora_all", *keys("train.balance=pcgrad", "train.checkpoint_steps=2"), "--json"]
    whole = toy_run(*command)
    assert whole.status == 0, whole.err
    folder = Path(whole.json["directory"])
    expected = (folder / "adapter" / "adapter.safetensors").read_bytes()
    assert all("weights" not in line for line in log(str(folder)))
    shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        crash_after(patch, {3})
        with pytest.raises(Crash):
            toy_run(*command)
    assert toy_run(*command).status == 0
    assert (folder / "adapter" / "adapter.safetensors").read_bytes() == expected
    plain = toy_run("--method", "lora_all", "--json").json["directory"]
    assert (Path(plain) / "adapter" / "adapter.safetensors").read_bytes() != expected


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    toy_run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.config.balance

    monkeypatch.setattr(harness.config.balance, "find_spec", lambda name: None)
    done = toy_run("--method", "lora_all", "--set", "train.balance=pcgrad", "--dry-run")
    assert done.status == 2
    assert "train.balance=pcgrad needs torchjd, which is not installed: pip install 'mtlora-harness[jd]'" in done.err
    assert toy_run("--method", "lora_all", "--set", "train.balance=famo", "--dry-run").status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "train.balance=fammo"], "unknown balancer 'fammo'. Did you mean 'famo'? See: harness list"),
        (["--set", "train.balance=famo", "--set", "balance.rate=1"], "unknown key 'balance.rate'"),
        (["--set", "train.balance=famo", "--set", "balance.lr=fast"], "balance.lr = 'fast'"),
        (["--set", "train.balance=5"], "train.balance=5 is not the name of a balancer. See: harness list"),
        (
            ["--set", "balance.lr=1"],
            "balance.lr=1 is a setting of a balancer, and none is chosen: set train.balance too",
        ),
        (
            ["--set", "train.balance=famo", "--tasks", "last"],
            "weighs tasks that are trained together, but every adapter of this run has one task",
        ),
    ],
)
def test_a_balance_without_meaning_is_wrong_use(toy_run: Command, arguments: list[str], words: str) -> None:
    done = toy_run("--method", "lora_all", *arguments)
    assert done.status == 2
    assert words in done.err


@pytest.mark.parametrize("method", ["lora_single", "lorahub", "merge", "arrow"])
def test_methods_that_train_each_task_alone_have_nothing_to_balance(toy_run: Command, method: str) -> None:
    done = toy_run("--method", method, "--set", "train.balance=famo", "--dry-run")
    assert done.status == 2
    assert f"{method} trains each task in a stage of its own: leave train.balance out" in done.err


def test_a_method_without_training_ignores_the_balance_as_it_ignores_the_learning_rate(toy_run: Command) -> None:
    done = toy_run("--method", "majority", "--set", "train.balance=famo", "--set", "train.lr=1", "--json")
    assert done.status == 0, done.err
    assert done.json["record"]["spec"]["train"]["balance"] is None


def test_a_balancer_that_reads_dev_needs_a_dev_split(toy_run: Command, plugin: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_bytes((plugin / "toy_plugin" / "data" / f"{split}.jsonl").read_bytes())
    done = toy_run("--method", "lora_all", "--data", data, "--set", "train.balance=coba")
    assert done.status == 1
    assert "no dev split" in done.err
    assert "train.balance=coba needs one: leave train.balance out" in done.err


def test_balancers_are_listed_and_described(harness: Command) -> None:
    listed = harness("list").out
    assert all(name in listed for name in ("uncertainty", "coba", "pcgrad", "upgrad"))
    described = harness("list", "famo").out
    assert "balance.lr" in described
    assert "0.025" in described
    assert "train.balance" in harness("keys").out


def test_a_balancer_of_another_package_is_found_by_its_entry_point(toy_run: Command, harness: Command) -> None:
    settings = keys("train.balance=toy_geometric", "balance.power=0.5", "train.loss=task")
    done = toy_run("--method", "lora_all", *settings, "--json")
    assert done.status == 0, done.err
    for line in log(done.json["directory"]):
        losses, weights = line["tasks"], line["weights"]
        products = [weights[task] * losses[task] ** 0.5 for task in losses]
        assert products == pytest.approx([products[0]] * len(products), rel=1e-3)
    assert "balance.power" in harness("list", "toy_geometric").out
    assert "toy_geometric" in harness("list", "--check").out


@pytest.mark.long
def test_a_leaderboards_file_names_balancers_in_the_settings_of_its_rows(
    toy_run: Command, toy_model: Path, tmp_path: Path
) -> None:
    from harness.store.run_directory import RunDirectory
    from harness.sweep.entries import Matcher
    from harness.sweep.spec import read_board

    rows = ["", 'settings = { train.balance = "dwa" }', 'settings = { train.balance = "dwa", balance.window = 2 }']
    file = tmp_path / "board.toml"
    file.write_text(
        f'suite = "toys"\nmodel = "{toy_model}"\nseeds = [0]\n[settings]\ntrain.steps = 4\neval.max_new_tokens = 6\n'
        "eval.per_task = 4\n" + "".join(f'[[row]]\nmethod = "lora_all"\n{row}\n' for row in rows)
    )
    board = read_board(file)
    for i, settings in enumerate(([], ["train.balance=dwa"], ["train.balance=dwa", "balance.window=2"])):
        done = toy_run("--method", "lora_all", "--budget", "active:16", *keys(*settings), "--json")
        spec = RunDirectory(Path(done.json["directory"])).spec()
        assert spec is not None
        assert [entry.config for entry in Matcher(board).entries_of(spec)] == [board.row[i]]


@pytest.mark.long
def test_runs_with_and_without_balance_are_compared_with_each_other(toy_run: Command, tmp_path: Path) -> None:
    from harness.scoring.comparable import other_effort
    from harness.store.run_directory import RunDirectory

    done = [
        toy_run("--method", "lora_all", *keys(*settings), "--json").json["directory"]
        for settings in ([], ["train.balance=rlw"], ["train.loss=task"])
    ]
    plain, balanced, other = (RunDirectory(Path(folder)).spec() for folder in done)
    assert plain is not None
    assert balanced is not None
    assert other is not None
    assert other_effort(plain, balanced) is None
    assert other_effort(plain, other) == "different effort: train.loss token and task"
