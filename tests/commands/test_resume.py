"""A run that is stopped in any way and started again ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from step_hook import Crash, after_each_step, crash_after

from harness.runtime.signals import Interrupted
from harness.training.stage import StepDone

Command = Callable[..., Any]


def only(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


def result(run: Path) -> dict[str, Any]:
    """Everything a run leaves except for times."""
    record = json.loads((run / "record.json").read_text())
    for key in ("started_at", "finished_at", "provenance"):
        del record[key]
    for key in ("seconds", "search_seconds", "wait_seconds", "tokens_per_second", "peak_memory_bytes"):
        del record["training"][key]
    for key in ("seconds", "peak_memory_bytes"):
        del record["generation"][key]
    log = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    return {
        "adapter": (run / "adapter" / "adapter.safetensors").read_bytes(),
        "record": record,
        "log": [{k: v for k, v in line.items() if k != "seconds"} for line in log],
        "scores": (run / "scores.json").read_text(),
        "predictions": {p.name: sorted(p.read_text().splitlines()) for p in (run / "predictions").iterdir()},
    }


# Stopped in this process


KEYS = {
    "cgc_lora": ["method.dropout=0.1"],
    "c_poly": ["train.loss=task", "train.precision=bf16"],
    "lora_single": ["train.eval_every=2", "train.eval_rows=1", "method.dropout=0.1"],
    "lora_all": ["train.precision=fp16"],
    "moa": ["train.mixture=uniform"],
    "lorahub": ["method.steps=3", "method.shots=2"],
}


@pytest.mark.long
@pytest.mark.parametrize("method", list(KEYS))
def test_a_run_that_crashed_ends_with_the_same_bits(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    keys = [word for key in [*KEYS[method], "train.checkpoint_steps=2"] for word in ("--set", key)]
    command = ["--method", method, "--out", tmp_path / "runs", *keys]
    done = toy_run(*command)
    assert done.status == 0, done.err
    expected = result(only(tmp_path / "runs"))
    shutil.rmtree(tmp_path / "runs")
    for first in (3, 2):
        with monkeypatch.context() as patch:
            crash_after(patch, {first})
            with pytest.raises(Crash):
                toy_run(*command)
    done = toy_run(*command)
    assert done.status == 0, done.err
    found = result(only(tmp_path / "runs"))
    assert found["log"] == expected["log"]
    assert found["record"] == expected["record"]
    assert found == expected


@pytest.mark.long
def test_a_search_that_crashed_ends_with_the_same_bits(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that resumes makes no training step before it searches."""
    from harness.training.trainer import EngineTrainer

    loss, made = EngineTrainer.loss, []

    def counted(self: EngineTrainer, examples: Any) -> float:
        made.append(1)
        if len(made) in (8, 17):
            raise Crash
        return loss(self, examples)

    command = ["--method", "lorahub", "--out", tmp_path / "runs", "--set", "method.steps=12", "--set", "train.steps=2"]
    assert toy_run(*command).status == 0
    expected = result(only(tmp_path / "runs"))
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.setattr(EngineTrainer, "loss", counted)
    for _ in range(2):
        with pytest.raises(Crash):
            toy_run(*command)
    assert toy_run(*command).status == 0
    found = result(only(tmp_path / "runs"))
    assert found["record"] == expected["record"]
    assert found == expected


def test_an_interrupted_run_exits_with_the_signals_status_and_names_the_command_to_resume(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: StepDone) -> None:
        if done.step == 3:
            raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patch:
        after_each_step(patch, interrupt)
        stopped = toy_run("--method", "lora_all")
    assert stopped.status == 130
    assert "same command" in stopped.err
    assert toy_run("--method", "lora_all").status == 0


def test_the_scale_of_fp16_losses_is_kept(toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash_after(monkeypatch, {3})
    with pytest.raises(Crash):
        toy_run("--method", "lora_all", "--set", "train.precision=fp16", "--set", "train.checkpoint_steps=1")
    checkpoint = sorted((only(tmp_path / "runs") / "checkpoints").iterdir())[-1]
    scaler = json.loads((checkpoint / "progress.json").read_text())["scaler"]
    assert scaler["scale"] >= 1
    assert scaler["_growth_tracker"] + (scaler["scale"] < 2**16) > 0


@pytest.mark.long
def test_micro_batches_stay_halved_after_a_restart(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward
    tried: list[int] = []

    @functools.wraps(forward)
    def cramped(self: Any, *arguments: Any, **inputs: Any) -> Any:
        tried.append(inputs["input_ids"].numel())
        if self.training and tried[-1] > 100:
            raise torch.OutOfMemoryError("no room")
        return forward(self, *arguments, **inputs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", cramped)
    with monkeypatch.context() as patch:
        crash_after(patch, {2})
        with pytest.raises(Crash):
            toy_run("--method", "lora_all", "--set", "train.checkpoint_steps=1")
    assert max(tried) > 100
    tried.clear()
    done = toy_run("--method", "lora_all", "--set", "train.checkpoint_steps=1", "--json")
    assert done.status == 0, done.err
    assert done.json["record"]["training"]["micro_tokens"] <= 100
    training = tried[: next((i for i, n in enumerate(tried) if n > 100), len(tried))]
    assert len(training) > 2


# Stopped from outside


class Forks:
    """Runs of the command in processes that can be killed."""

    def __init__(self, plugin: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(plugin), "OMP_NUM_THREADS": "1"}
        server = [sys.executable, str(Path(__file__).parents[1] / "support" / "forked_runs.py")]
        self.server = subprocess.Popen(server, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.told("ready")

    def run(self, arguments: list[Any], log: Path, kill: int | None = None, after: float | Path = 0.0) -> int:
        """The exit status; ``kill``: the signal, sent after this many seconds, or once a file exists."""
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps({"arguments": list(map(str, arguments)), "log": str(log)}) + "\n")
        self.server.stdin.flush()
        pid = self.told("pid")
        if kill is not None:
            if isinstance(after, Path):
                wait_for(after)
            else:
                time.sleep(after)
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.kill(pid, kill)
        return self.told("exit")

    def told(self, what: str) -> int:
        assert self.server.stdout is not None
        word, number = self.server.stdout.readline().split()
        assert word == what
        return int(number)


def wait_for(path: Path, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not list(path.parent.parent.glob(f"*/{path.name}")) and time.monotonic() < end:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def forks(plugin: Path) -> Iterator[Forks]:
    made = Forks(plugin)
    yield made
    made.server.stdin.close()  # type: ignore[union-attr]
    made.server.wait(timeout=20)


def killed_command(model: Path, out: Path, method: str, *more: str) -> list[Any]:
    keys = ["train.steps=10", "train.checkpoint_steps=2", "method.dropout=0.1", "eval.max_new_tokens=6"]
    keys += ["eval.per_task=4", "eval.batch_tokens=100", *more]
    settings = [word for key in keys for word in ("--set", key)]
    return ["run", "--method", method, "--suite", "toys", "--model", model, "--out", out, *settings]


def kill_often(forks: Forks, model: Path, folder: Path, times: int, method: str, *more: str) -> None:
    """Kill a run at random moments, let it end, and compare it with one that was left alone."""
    alone = killed_command(model, folder / "alone", method, *more)
    started = time.monotonic()
    assert forks.run(alone, folder / "log") == 0, (folder / "log").read_text()
    lasts = time.monotonic() - started
    command = killed_command(model, folder / "killed", method, *more)
    moments = random.Random(times)
    killed = 0
    for _ in range(times):
        after = moments.uniform(0, lasts)
        status = forks.run(command, folder / "log", signal.SIGKILL, after)
        killed += status == -signal.SIGKILL
        if status == 0:  # it takes less than it did
            lasts = after
        if (folder / "killed").exists() and (only(folder / "killed") / "record.json").exists():
            check_same(folder)
            shutil.rmtree(folder / "killed")
    assert killed, "no kill came before the run had ended"
    assert forks.run(command, folder / "log") == 0, (folder / "log").read_text()
    check_same(folder)


def check_same(folder: Path) -> None:
    assert result(only(folder / "killed")) == result(only(folder / "alone"))


@pytest.mark.slow
def test_a_run_killed_at_five_random_moments_ends_with_the_same_bits(
    forks: Forks, toy_model: Path, tmp_path: Path
) -> None:
    kill_often(forks, toy_model, tmp_path, 5, "lora_single", "train.eval_every=5", "train.eval_rows=1")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cgc_lora", "lora_single", "c_poly", "moa", "lorahub"])
def test_a_run_killed_at_fifty_random_moments_ends_with_the_same_bits(
    forks: Forks, toy_model: Path, tmp_path: Path, method: str
) -> None:
    kill_often(forks, toy_model, tmp_path, 50 if method == "cgc_lora" else 15, method)


@pytest.mark.long
def test_sigterm_keeps_a_checkpoint_and_the_exit_status_says_so(forks: Forks, toy_model: Path, tmp_path: Path) -> None:
    more = ("train.steps=24", "train.checkpoint_steps=1000")
    alone = killed_command(toy_model, tmp_path / "alone", "cgc_lora", *more)
    command = killed_command(toy_model, tmp_path / "killed", "cgc_lora", *more)
    log = tmp_path / "killed" / "run" / "train.jsonl"
    assert forks.run(command, tmp_path / "log", signal.SIGTERM, after=log) == 143
    run = only(tmp_path / "killed")
    (checkpoint,) = (run / "checkpoints").iterdir()
    step = json.loads((checkpoint / "progress.json").read_text())["step"]
    assert 0 < step < 24
    assert len((run / "train.jsonl").read_text().splitlines()) == step
    assert "Run the same command again" in (tmp_path / "log").read_text()
    assert not (run / "failure.json").exists()
    assert forks.run(command, tmp_path / "log") == 0
    assert forks.run(alone, tmp_path / "log") == 0
    check_same(tmp_path)
