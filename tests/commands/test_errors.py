"""Wrong input: each message names the thing and what to do next, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "cgc_lroa"], ["unknown method 'cgc_lroa'", "Did you mean 'cgc_lora'", "harness list"]),
        (["--method", "lora_all", "--suite", "toyz"], ["unknown suite 'toyz'", "'toys'"]),
        (["--method", "lora_all", "--tasks", "first,colur"], ["unknown task 'colur'", "'colour'"]),
        (["--method", "lora_all", "--set", "train.lrr=1"], ["unknown key 'train.lrr'", "'train.lr'", "harness keys"]),
        (["--method", "lora_all", "--set", "trian.lr=1"], ["unknown key 'trian.lr'", "train.lr"]),
        (["--method", "lora_all", "--set", "train.lr=fast"], ["train.lr", "'fast'", "number"]),
        (["--method", "lora_all", "--set", "train.lr=-1"], ["train.lr", "-1", "greater than 0"]),
        (["--method", "lora_all", "--set", "train.lr"], ["key=value"]),
        (["--method", "lora_all", "--set", "method.rnak=4"], ["method.rnak", "method.rank"]),
        (["--method", "lora_all", "--set", "method.rank=four"], ["method.rank", "'four'"]),
        (["--method", "cgc_lora", "--ablation", "no_gates"], ["unknown ablation 'no_gates'", "'no_gate'"]),
        (["--method", "cgc_lora", "--preset", "papper"], ["unknown preset 'papper'"]),
        (["--method", "lora_all", "--budget", "16"], ["active:16"]),
        (["--method", "toy_broken"], ["toy_broken", "toy-plugin", "toy_plugin.missing"]),
        (["--method", "lora_all", "--prompt", "chat"], ["no chat template", "--prompt plain"]),
    ],
)
def test_a_wrong_name_or_value_is_wrong_use_and_names_the_remedy(
    toy_run: Command, arguments: list[str], words: list[str]
) -> None:
    failed = toy_run(*arguments)
    assert failed.status == (1 if "toy_broken" in arguments else 2), failed.err
    for word in words:
        assert word in failed.err


def test_a_config_file_is_read_and_the_command_line_wins(toy_run: Command, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('[run]\nmethod = "lora_all"\nseed = 3\n[method]\nrank = 4\n[train]\nlr = 0.5\n')
    spec = toy_run("--config", config, "--seed", "5", "--dry-run", "--json").json["spec"]
    assert (spec["seed"], spec["method"]["fields"], spec["train"]["lr"]) == (5, {"rank": 4}, 0.5)
    config.write_text("[run\n")
    assert "not valid TOML" in toy_run("--config", config).err
    config.write_text("[trian]\nlr = 1\n")
    assert "'train'" in toy_run("--config", config).err


def test_missing_data_and_models_say_what_is_needed(toy_run: Command, harness: Command, tmp_path: Path) -> None:
    assert "train.jsonl" in toy_run("--method", "lora_all", "--data", tmp_path / "nowhere").err
    failed = harness("run", "--suite", "toys", "--method", "lora_all", "--model", tmp_path)
    assert failed.status == 1
    assert "config.json" in failed.err


def test_malformed_official_data_name_file_and_line(harness: Command, tmp_path: Path) -> None:
    good = {"input": "x", "target": "是的", "answer_choices": ["是的", "不是"], "task_dataset": "CHIP-STS"}
    lines = [json.dumps({**good, "task_type": "cls", "sample_id": f"t-{i}"}, ensure_ascii=False) for i in range(3)]
    for name, content, words in (
        ("broken", "\n".join([lines[0], "{oops", lines[2]]), ["test.json", "line 2"]),
        ("typo", "\n".join([lines[0], lines[1].replace("CHIP-STS", "CHIP-SST")]), ["line 2", "CHIP-SST", "CHIP-STS"]),
        ("column", json.dumps({"prompt": "x"}), ["line 1", "input"]),
        ("empty", "", ["test.json", "empty"]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.json").write_text("\n".join(lines), encoding="utf-8")
        (folder / "test.json").write_text(content, encoding="utf-8")
        failed = harness("run", "--suite", "promptcblue", "--method", "majority", "--data", folder)
        assert failed.status == 1, name
        for word in words:
            assert word in failed.err, (name, failed.err)


def test_a_prompt_longer_than_the_context_loses_its_middle_and_is_counted(toy_run: Command) -> None:
    value = toy_run("--method", "lora_all", "--set", "train.max_length=24", "--json").json
    assert value["record"]["training"]["n_middle_cut"] == value["record"]["training"]["examples"]
    failed = toy_run("--method", "lora_all", "--set", "eval.max_new_tokens=120")
    assert failed.status == 1
    assert "train.max_length" in failed.err


@pytest.mark.long
def test_no_space_left_keeps_what_was_finished(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        failed = toy_run("--method", "lora_all")
    assert failed.status == 1
    assert "No space left" in failed.err
    assert "same command" in failed.err
    assert toy_run("--method", "lora_all").status == 0


def test_a_folder_that_cannot_be_created_is_an_error_without_a_traceback(toy_run: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = toy_run("--method", "majority", "--out", tmp_path / "file" / "runs")
    assert failed.status == 1
    assert f"cannot write {tmp_path / 'file' / 'runs'}" in failed.err
    assert "Choose another --out" in failed.err


def test_an_unknown_protocol_is_an_error_before_anything_is_trained(toy_run: Command, tmp_path: Path) -> None:
    failed = toy_run("--method", "majority", "--protocol", "offical")
    assert failed.status == 2
    assert "Did you mean 'official'" in failed.err
    assert not (tmp_path / "runs").exists()


def test_an_unknown_preset_of_a_method_without_presets_says_that_there_is_none(toy_run: Command) -> None:
    failed = toy_run("--method", "majority", "--preset", "paper")
    assert "unknown preset 'paper'. None is defined. See: harness list METHOD" in failed.err


def test_a_second_process_on_the_same_run_is_an_error(toy_run: Command, tmp_path: Path) -> None:
    from harness.store.run_directory import RunDirectory

    toy_run("--method", "majority")
    (run,) = (tmp_path / "runs").iterdir()
    (run / "record.json").unlink()
    with RunDirectory(run).lock():
        code = (
            "import sys; from pathlib import Path; from harness.store.run_directory import RunDirectory\n"
            "from harness.errors import RunLocked\n"
            "try:\n    RunDirectory(Path(sys.argv[1])).lock().__enter__()\n"
            "except RunLocked as e:\n    print(e); sys.exit(e.exit_code)"
        )
        other = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert f"in use by process {os.getpid()} on host" in other.stdout
    assert "same command" in other.stdout


@pytest.mark.long
def test_ctrl_c_keeps_the_state_and_says_how_to_resume(
    start: Command, toy_run: Command, toy_model: Path, tmp_path: Path
) -> None:
    arguments = ["run", "--suite", "toys", "--method", "cgc_lora", "--model", toy_model, "--out", tmp_path / "runs"]
    process = start(*arguments, "--set", "train.steps=100000")
    log = None
    for _ in range(600):
        log = next((tmp_path / "runs").glob("*/train.jsonl"), None)
        if log is not None and log.read_text().count("\n") >= 3:
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "same command" in err
    assert log is not None
    assert list(log.parent.glob("checkpoints/*/adapter.safetensors"))
    assert not (log.parent / "failure.json").exists()


def test_help_and_list_load_nothing_heavy(plugin: Path) -> None:
    code = (
        "import sys\nsys.argv = ['harness', {argument!r}]\nfrom harness.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'scipy', 'pydantic', 'transformers', 'datasets', 'lm_eval') if m in sys.modules])"
    )
    for argument in ("--help", "list"):
        out = subprocess.run(
            [sys.executable, "-c", code.format(argument=argument)], capture_output=True, text=True, check=True
        )
        assert out.stdout.strip().splitlines()[-1] == "[]", argument


def test_two_distributions_that_claim_one_name_are_both_named(
    harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[harness.methods]\ntwice = methods.lora_all:LoRAAll\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    failed = harness("run", "--suite", "toys", "--method", "twice")
    assert failed.status == 2
    assert "one and other" in failed.err
    assert "one and other" in harness("list", "--check").out
