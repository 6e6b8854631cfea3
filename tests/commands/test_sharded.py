"""A base model that is divided over two processes gives the results of a whole one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsdp_steps import CASES, STEPS, name_of
from torchrun import torchrun

pytestmark = pytest.mark.numeric

Command = Callable[..., Any]
CLOSE = 1e-6


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes give for every case, with a whole and with a sharded base."""
    out = tmp_path_factory.mktemp("fsdp") / "steps.json"
    started = torchrun(Path(__file__).parents[1] / "support" / "fsdp_steps.py", out)
    _, err = started.communicate(timeout=280)
    assert started.returncode == 0, err
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_sharded_base_takes_the_steps_of_a_whole_one(
    steps: dict[str, Any], case: tuple[str, bool, bool, str | None]
) -> None:
    whole, sharded = (steps[name_of(case)][way] for way in ("whole", "sharded"))
    assert sharded["sharded"] > 0 == whole["sharded"]  # weights that this rank has a part of
    assert sharded["packed"] == whole["packed"] == case[1]
    assert len(whole["losses"]) == STEPS
    np.testing.assert_allclose(sharded["losses"], whole["losses"], rtol=CLOSE)
    np.testing.assert_allclose(sharded["norms"], whole["norms"], rtol=CLOSE)
    for mine, theirs in zip(sharded["tasks"], whole["tasks"], strict=True):
        assert mine == pytest.approx(theirs, rel=CLOSE)
    assert sharded["weights"].keys() == whole["weights"].keys()
    for name, values in whole["weights"].items():
        np.testing.assert_allclose(sharded["weights"][name], values, rtol=CLOSE, atol=CLOSE, err_msg=name)


@pytest.mark.long
def test_a_rank_with_fewer_micro_batches_makes_filling_ones(steps: dict[str, Any]) -> None:
    of_steps = steps["lora_all packed"]["sharded"]["micro_batches"]
    assert all(one[1] == other[1] for one, other in of_steps)
    assert [sum(filling for filling, _ in ranks) > 0 for ranks in of_steps] == [False, True, True, True]
    assert of_steps[-1] == [[0, 1], [1, 1]]  # one sequence, so that rank 1 has nothing of its own
    assert all(filling == 0 for ranks in steps["lora_all packed"]["whole"]["micro_batches"] for filling, _ in ranks)


@pytest.mark.long
def test_a_rank_joins_in_the_passes_of_another_one(steps: dict[str, Any]) -> None:
    assert steps["uneven"]["passes of one rank"] == [True, True]


@pytest.mark.long
def test_an_error_or_a_signal_of_one_rank_ends_the_others(steps: dict[str, Any]) -> None:
    found = steps["uneven"]
    assert found["error"] == ["RankFailed: rank 1 has failed: no space left", "HarnessError: no space left"]
    assert all(message.startswith("Interrupted: stopped") for message in found["signal"])


@pytest.mark.long
def test_ranks_with_different_numbers_of_passes_with_gradients_end_with_an_error(steps: dict[str, Any]) -> None:
    for message in steps["uneven"]["gradients"]:
        assert message.startswith("TrainingError: the ranks make different numbers of passes with gradients")
        assert "train.shard_base=false" in message


QUICK = ("train.steps=4", "eval.max_new_tokens=4", "eval.per_task=3", "train.batch_size=5", "eval.batch_tokens=120")
SHARDED = "train.shard_base=true"


def arguments(model: Path, out: Path, *more: str) -> list[Any]:
    settings = [word for key in (*QUICK, *more) for word in ("--set", key)]
    return ["run", "--method", "cgc_lora", "--suite", "toys", "--model", model, "--out", out, *settings]


def under_torchrun(plugin: Path, *words: Any) -> subprocess.Popen[str]:
    return torchrun("--no-python", Path(sys.executable).parent / "harness", *words, PYTHONPATH=str(plugin))


def finished(started: subprocess.Popen[str]) -> Any:
    out, err = started.communicate(timeout=280)
    assert started.returncode == 0, err
    return json.loads(out)


def predictions(directory: str | Path) -> dict[str, dict[str, str]]:
    """The texts by task and id."""
    files = sorted(Path(directory).glob("predictions/*.jsonl"))
    lines = {file.stem: map(json.loads, file.read_text(encoding="utf-8").splitlines()) for file in files}
    return {task: {line["id"]: line["text"] for line in of_task} for task, of_task in lines.items()}


def block_bytes(model: Path) -> int:
    """The weights of the first block, in float32."""
    from safetensors.torch import load_file

    weights = load_file(model / "model.safetensors")
    return sum(4 * tensor.numel() for name, tensor in weights.items() if name.startswith("model.layers.0."))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_with_a_sharded_base_makes_the_run_of_one_process(
    plugin: Path, toy_model: Path, tmp_path: Path, harness: Command
) -> None:
    two = finished(under_torchrun(plugin, *arguments(toy_model, tmp_path / "two", SHARDED), "--json"))
    assert two["record"]["provenance"]["settings"]["shards"] == 2
    one = harness(*arguments(toy_model, tmp_path / "one"), "--json").json
    assert one["record"]["run_id"] == two["record"]["run_id"]
    assert two["record"]["training"]["final_loss"] == pytest.approx(one["record"]["training"]["final_loss"], rel=1e-4)
    assert predictions(two["directory"]) == predictions(one["directory"])
    assert not (Path(two["directory"]) / "ranks").exists()
    again = ["evaluate", two["directory"], "--split", "dev", "--json"]
    sharded = finished(under_torchrun(plugin, *again))
    alone = harness("evaluate", one["directory"], *again[2:]).json
    assert predictions(sharded["directory"]) == predictions(alone["directory"]) != {}
    assert sharded["scores"] == alone["scores"]
    plans = [
        finished(under_torchrun(plugin, *arguments(toy_model, tmp_path, SHARDED), "--dry-run", "--json")),
        harness(*arguments(toy_model, tmp_path), "--dry-run", "--json").json,
    ]
    # Half of each of the two blocks, and two of them whole while they are in use.
    assert plans[0]["plan"]["memory_bytes"] == plans[1]["plan"]["memory_bytes"] + block_bytes(toy_model)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_was_stopped_sharded_is_resumed_by_one_process(
    plugin: Path, toy_model: Path, tmp_path: Path, harness: Command
) -> None:
    more = ["train.steps=60", "train.checkpoint_steps=1000"]
    started = under_torchrun(plugin, *arguments(toy_model, tmp_path / "stopped", *more, SHARDED))
    try:
        for _ in range(2000):
            logs = list((tmp_path / "stopped").glob("*/train.jsonl"))
            if logs and logs[0].read_text().count("\n") > 3:
                break
            time.sleep(0.1)
        started.send_signal(signal.SIGTERM)
        started.communicate(timeout=120)
    finally:
        started.kill()
    (checkpoint,) = (tmp_path / "stopped").glob("*/checkpoints/[0-9]*")
    assert 3 < json.loads((checkpoint / "progress.json").read_text())["step"] < 60
    resumed = harness(*arguments(toy_model, tmp_path / "stopped", *more), "--json").json["record"]
    whole = harness(*arguments(toy_model, tmp_path / "whole", *more), "--json").json["record"]
    assert resumed["run_id"] == whole["run_id"]
    assert resumed["training"]["steps"] == 60
    assert resumed["training"]["final_loss"] == pytest.approx(whole["training"]["final_loss"], rel=1e-4)


def test_a_sharded_base_needs_several_processes(harness: Command, toy_model: Path, tmp_path: Path) -> None:
    for more in ([], ["--dry-run"]):
        done = harness(*arguments(toy_model, tmp_path, SHARDED), *more)
        assert done.status == 2
        assert "torchrun --nproc-per-node N --no-python harness run" in done.err


@pytest.mark.parametrize(
    "other",
    [
        "train.compile=true",
        "train.cache_frozen=true",
        "train.precision=nf4",
        "train.precision=int8",
        "train.affinity=true",
        "train.balance=pcgrad",
    ],
)
def test_what_a_sharded_base_does_not_support_is_named(
    harness: Command, toy_model: Path, tmp_path: Path, other: str
) -> None:
    if other == "train.balance=pcgrad":
        pytest.importorskip("torchjd")
    done = harness(*arguments(toy_model, tmp_path, SHARDED, other))
    assert done.status == 2
    assert other.replace("affinity=true", "affinity=gradients") in done.err
    assert "leave one of the two out" in done.err
