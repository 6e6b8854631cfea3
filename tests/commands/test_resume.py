"""A run that is stopped in any way and started again ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import errno
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

from harness.errors import StoreError
from harness.training.checkpoint import Checkpoint, Owner, load_newest, save_checkpoint
from harness.training.progress import Progress

Command = Callable[..., Any]
OWNER = Owner(run_id="a" * 64, spec={"train": {"lr": 0.001}, "seed": 0})


def only(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


def result(run: Path) -> dict[str, Any]:
    """Everything a run leaves that does not tell of times."""
    record = json.loads((run / "record.json").read_text())
    for key in ("started_at", "finished_at", "provenance"):
        del record[key]
    for key in ("seconds", "wait_seconds", "tokens_per_second", "peak_memory_bytes"):
        del record["training"][key]
    del record["generation"]["seconds"]
    log = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    return {
        "adapter": (run / "adapter" / "adapter.safetensors").read_bytes(),
        "record": record,
        "log": [{k: v for k, v in line.items() if k != "seconds"} for line in log],
        "scores": (run / "scores.json").read_text(),
        "predictions": {p.name: sorted(p.read_text().splitlines()) for p in (run / "predictions").iterdir()},
    }


# Stopped in this process


class Crash(BaseException):
    """No error that anything could handle."""


def crash_at(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """End the process, as far as a test can, after these of all steps of the run."""
    from harness.training.step import Loop

    step, made = Loop.step, []

    def counted(self: Loop, *arguments: Any, **named: Any) -> Any:
        done = step(self, *arguments, **named)
        made.append(1)
        if len(made) in steps:
            raise Crash
        return done

    monkeypatch.setattr(Loop, "step", counted)


KEYS = {
    "cgc_lora": ["method.dropout=0.1"],
    "c_poly": ["train.loss=task", "train.precision=bf16"],
    "lora_single": ["train.eval_every=2", "train.eval_rows=1", "method.dropout=0.1"],
    "lora_all": ["train.precision=fp16"],
    "moa": ["train.mixture=uniform"],
    "lorahub": ["method.steps=3", "method.shots=2"],
}


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
            crash_at(patch, {first})
            with pytest.raises(Crash):
                toy_run(*command)
    done = toy_run(*command)
    assert done.status == 0, done.err
    found = result(only(tmp_path / "runs"))
    assert found["log"] == expected["log"]
    assert found["record"] == expected["record"]
    assert found == expected


def test_a_search_that_crashed_ends_with_the_same_bits(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that goes on makes no step before it searches."""
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


def test_the_scale_of_fp16_losses_is_kept(toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash_at(monkeypatch, {3})
    with pytest.raises(Crash):
        toy_run("--method", "lora_all", "--set", "train.precision=fp16", "--set", "train.checkpoint_steps=1")
    checkpoint = sorted((only(tmp_path / "runs") / "checkpoints").iterdir())[-1]
    scaler = json.loads((checkpoint / "progress.json").read_text())["scaler"]
    assert scaler["scale"] >= 1
    assert scaler["_growth_tracker"] + (scaler["scale"] < 2**16) > 0


def test_a_gradient_that_overflows_in_fp16_leaves_out_a_step_and_lowers_the_scale(
    toy_llama: Callable[..., Any],
) -> None:
    from test_packing import PACKED, TASKS, make_loop, make_rows

    from harness.registry import method_class

    loop = make_loop(toy_llama().to(torch.float16), method_class("lora_all")(), PACKED)
    loop.scaler.load_state_dict({**loop.scaler.state_dict(), "scale": 2.0**40})
    before = {n: p.detach().clone() for n, p in loop.stage.parameters.items()}
    loop.step(0, make_rows(), TASKS)
    assert loop.scaler.get_scale() == 2.0**39
    assert all(torch.equal(p, before[n]) for n, p in loop.stage.parameters.items())
    loop.scaler.load_state_dict({**loop.scaler.state_dict(), "scale": 128.0})
    loop.step(1, make_rows(), TASKS)
    assert not all(torch.equal(p, before[n]) for n, p in loop.stage.parameters.items())


def test_a_loss_that_is_no_number_names_the_tasks_and_the_last_good_checkpoint(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.training.step

    losses = harness.training.step.token_losses
    calls: list[int] = []

    def spoilt(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return losses(*arguments, **named) * (float("nan") if len(calls) > 12 else 1.0)

    monkeypatch.setattr(harness.training.step, "token_losses", spoilt)
    keys = ["--set", "train.steps=40", "--set", "train.checkpoint_steps=1", "--tasks", "colour,last"]
    done = toy_run("--method", "lora_all", *keys)
    assert done.status == 1
    assert "tasks of the batch: colour, last" in done.err
    run = only(tmp_path / "runs")
    newest = sorted((run / "checkpoints").iterdir())[-1]
    assert str(newest) in done.err
    failure = json.loads((run / "failure.json").read_text())
    assert failure["where"] == f"stage all, step {json.loads((newest / 'progress.json').read_text())['step'] + 1}"


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
        crash_at(patch, {2})
        with pytest.raises(Crash):
            toy_run("--method", "lora_all", "--set", "train.checkpoint_steps=1")
    assert max(tried) > 100
    tried.clear()
    done = toy_run("--method", "lora_all", "--set", "train.checkpoint_steps=1", "--json")
    assert done.status == 0, done.err
    assert done.json["record"]["training"]["micro_tokens"] <= 100
    training = tried[: next((i for i, n in enumerate(tried) if n > 100), len(tried))]
    assert len(training) > 2


# Checkpoints


def save(folder: Path, step: int, owner: Owner = OWNER) -> Path:
    weights = {"a": torch.full((3,), float(step))}
    state = Checkpoint(
        adapter=weights, optimiser={"a/exp_avg": weights["a"]}, best={}, progress=Progress(stage="all", step=step)
    )
    return save_checkpoint(folder, state, owner)


def truncate(path: Path) -> None:
    data = (path / "adapter.safetensors").read_bytes()
    (path / "adapter.safetensors").write_bytes(data[: len(data) // 2])


def flip(path: Path) -> None:
    data = bytearray((path / "optimiser.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "optimiser.safetensors").write_bytes(bytes(data))


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def no_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("")


@pytest.mark.parametrize("damage", [truncate, flip, empty, no_manifest])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    before = save(tmp_path, 1)
    damage(save(tmp_path, 2))
    found = load_newest(tmp_path, OWNER)
    assert found.checkpoint is not None
    assert found.path == before
    assert found.checkpoint.progress.step == 1
    assert float(found.checkpoint.adapter["a"][0]) == 1.0
    assert len(found.damaged) == 1
    assert "00000002 is damaged" in found.damaged[0]
    assert save(tmp_path, 3).name == "00000003"


def test_when_every_checkpoint_is_damaged_training_starts_again_and_says_so(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(save(tmp_path, step))
    found = load_newest(tmp_path, OWNER)
    assert found.checkpoint is None
    assert len(found.damaged) == 3
    assert "starts again" in found.damaged[-1]


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000004", "00000005"]


def test_a_checkpoint_of_another_spec_is_refused_and_the_difference_shown(tmp_path: Path) -> None:
    save(tmp_path, 1)
    other = Owner(run_id="b" * 64, spec={"train": {"lr": 0.01}, "seed": 0})
    with pytest.raises(StoreError, match=r"train\.lr is 0\.001 there and 0\.01 here"):
        load_newest(tmp_path, other)


def test_a_full_disk_keeps_the_checkpoint_before_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", raise_full)
        with pytest.raises(StoreError, match=r"No space left.*kept.*free space"):
            save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
    found = load_newest(tmp_path, OWNER)
    assert found.checkpoint is not None
    assert found.checkpoint.progress.step == 1


def raise_full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_on_a_full_disk_goes_on_when_there_is_space_again(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.training.trainer

    save_one, saved = harness.training.trainer.save_checkpoint, []

    def full(*arguments: Any) -> Path:
        saved.append(1)
        if len(saved) == 3:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", raise_full)
                return save_one(*arguments)
        return save_one(*arguments)

    monkeypatch.setattr(harness.training.trainer, "save_checkpoint", full)
    stopped = toy_run("--method", "lora_all", "--set", "train.checkpoint_steps=1")
    assert stopped.status == 1
    assert "No space left" in stopped.err
    done = toy_run("--method", "lora_all", "--set", "train.checkpoint_steps=1", "--json")
    assert done.status == 0, done.err
    assert done.json["record"]["training"]["steps"] == 4
    assert len((only(tmp_path / "runs") / "train.jsonl").read_text().splitlines()) == 4


# Stopped from outside


class Forks:
    """Runs of the command in processes that can be killed."""

    def __init__(self, plugin: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(plugin), "OMP_NUM_THREADS": "1"}
        server = [sys.executable, str(Path(__file__).parents[1] / "support" / "forked_runs.py")]
        self.server = subprocess.Popen(server, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.told("ready")

    def run(self, arguments: list[Any], log: Path, kill: int | None = None, after: float | Path = 0.0) -> int:
        """The exit status; ``kill``: the signal, sent after so many seconds, or once a file is there."""
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
    assert "Give the same command again" in (tmp_path / "log").read_text()
    assert not (run / "failure.json").exists()
    assert forks.run(command, tmp_path / "log") == 0
    assert forks.run(alone, tmp_path / "log") == 0
    check_same(tmp_path)
