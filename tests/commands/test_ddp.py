"""Several processes give the results of a single one."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ddp_steps import RUNS, STEPS, run
from torchrun import torchrun

from harness.runtime.distributed import SINGLE_PROCESS, ProcessGroup, partition_by_length

pytestmark = pytest.mark.numeric

Command = Callable[..., Any]
CLOSE = 1e-6  # the toy computes in float64, but its norms in float32


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes give for every method."""
    out = tmp_path_factory.mktemp("ddp") / "two.json"
    started = torchrun(Path(__file__).parents[1] / "support" / "ddp_steps.py", out)
    _, err = started.communicate(timeout=120)
    assert started.returncode == 0, err
    found = json.loads(out.read_text())
    assert found["world_size"] == 2
    runs: dict[str, Any] = found["runs"]
    return runs


@pytest.mark.long
@pytest.mark.parametrize(("name", "kind", "balancer"), RUNS)
def test_two_processes_take_the_steps_of_one(two: dict[str, Any], name: str, kind: str, balancer: str | None) -> None:
    one, other = run(name, kind, balancer, SINGLE_PROCESS), two[name]
    assert len(one["losses"]) == STEPS
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=CLOSE)
    np.testing.assert_allclose(other["norms"], one["norms"], rtol=CLOSE)
    for mine, theirs in zip(one["tasks"], other["tasks"], strict=True):
        assert theirs == pytest.approx(mine, rel=CLOSE)
    assert len(one["task_gradients"]) == (0 if name == "lora_single" else 4)
    for mine, theirs in zip(one["task_gradients"], other["task_gradients"], strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=CLOSE, atol=CLOSE)
    for what in ("gradients", "weights"):
        assert one[what].keys() == other[what].keys()
        for parameter, values in one[what].items():
            assert (values is None) == (other[what][parameter] is None), parameter
            if values is not None:
                np.testing.assert_allclose(other[what][parameter], values, rtol=CLOSE, atol=CLOSE, err_msg=parameter)


@pytest.mark.long
def test_a_rank_that_is_asked_to_stop_stops_all(two: dict[str, Any]) -> None:
    assert two["cgc_lora"]["stops"] == [7]


def test_sequences_are_partitioned_by_length_and_each_once() -> None:
    lengths = [5, 100, 7, 50, 49, 8, 90]
    parts = partition_by_length(lengths, 3)
    assert sorted(i for part in parts for i in part) == list(range(7))
    tokens = [sum(lengths[i] for i in part) for part in parts]
    assert max(tokens) - min(tokens) <= 10
    assert partition_by_length([3], 2) == [[0], []]
    assert partition_by_length(lengths, 1)[0] == sorted(range(7), key=lambda i: -lengths[i])


def test_a_single_process_has_no_group() -> None:
    assert SINGLE_PROCESS.broadcast("value") == "value"
    assert ProcessGroup(rank=1, world_size=2).is_main is False


def arguments(model: Path, out: Path, *more: Any) -> list[Any]:
    harness = Path(sys.executable).parent / "harness"
    keys = ["train.steps=4", "eval.max_new_tokens=4", "eval.per_task=2", "train.batch_size=5", *more]
    settings = [word for key in keys for word in ("--set", key)]
    return [harness, "run", "--method", "cgc_lora", "--suite", "toys", "--model", model, "--out", out, *settings]


def predictions(directory: Path) -> dict[str, set[tuple[str, str]]]:
    """Ids and texts by task: each rank has generated a part of them."""
    files = sorted(directory.glob("predictions/*.jsonl"))
    found = {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in files}
    assert all(len(lines) == 2 for lines in found.values())
    return {task: {(line["id"], line["text"]) for line in lines} for task, lines in found.items()}


@pytest.mark.slow
def test_the_command_under_torchrun_makes_the_run_of_one_process(
    plugin: Path, toy_model: Path, tmp_path: Path, harness: Command
) -> None:
    command = arguments(toy_model, tmp_path / "two")
    started = torchrun("--no-python", *command, "--json", PYTHONPATH=str(plugin))
    out, err = started.communicate(timeout=200)
    assert started.returncode == 0, err
    two = json.loads(out)  # one process speaks
    assert err.count("train all: step 4/4") == 1
    assert two["record"]["provenance"]["settings"]["processes"] == 2
    one = harness(*arguments(toy_model, tmp_path / "one")[1:], "--json").json
    assert one["record"]["run_id"] == two["record"]["run_id"]
    assert two["record"]["training"]["final_loss"] == pytest.approx(one["record"]["training"]["final_loss"], rel=1e-4)
    assert two["record"]["training"]["tokens"] == one["record"]["training"]["tokens"]
    texts = [predictions(Path(of["directory"])) for of in (one, two)]
    assert texts[0] == texts[1]
    assert not (Path(two["directory"]) / "ranks").exists()
    again = torchrun("--no-python", *command, PYTHONPATH=str(plugin))
    _, err = again.communicate(timeout=200)
    assert again.returncode == 0
    assert "already complete" in err


@pytest.mark.slow
def test_stopping_torchrun_keeps_a_checkpoint(plugin: Path, toy_model: Path, tmp_path: Path) -> None:
    more = ["train.steps=100000", "train.checkpoint_steps=100000"]
    started = torchrun("--no-python", *arguments(toy_model, tmp_path, *more), PYTHONPATH=str(plugin))
    try:
        for _ in range(600):
            logs = list(tmp_path.glob("*/train.jsonl"))
            if logs and logs[0].read_text().count("\n") > 5:
                break
            time.sleep(0.1)
        started.send_signal(signal.SIGTERM)
        started.communicate(timeout=60)
    finally:
        started.kill()
    (checkpoint,) = tmp_path.glob("*/checkpoints/[0-9]*")
    progress = json.loads((checkpoint / "progress.json").read_text())
    assert progress["step"] > 5
    assert not list(tmp_path.glob("*/failure.json"))
