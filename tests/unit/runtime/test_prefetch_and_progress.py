"""What the engine keeps count of and shows while it trains."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.runtime.prefetch import Prefetch
from harness.runtime.progress_bar import Watch

Command = Callable[..., Any]


def test_rows_come_in_order_and_are_made_while_others_are_used() -> None:
    made, used = [], []

    def make(number: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        made.append(number)
        return number * number

    with Prefetch(make, 3, 8) as ahead:
        for number in range(3, 8):
            used.append(ahead.take())
            ahead.rest()
            assert made == list(range(3, min(number + 2, 8)))  # the next one, and no more
    assert used == [9, 16, 25, 36, 49]


def test_nobody_waits_for_rows_that_were_made_in_time() -> None:
    """By a clock of the test's own, which goes on by 5 seconds with each row that is made."""
    now = [0.0]
    asked = threading.Event()

    def clock() -> float:
        asked.set()
        return now[0]

    def make(number: int) -> int:
        asked.wait()  # the first row is not made before the loop asks for it
        now[0] += 5
        return number

    with Prefetch(make, 0, 4, clock) as ahead:
        ahead.take()
        assert ahead.waited == 5
        ahead.rest()  # the second row is made by now
        ahead.take()
        assert ahead.waited == 0


def test_an_error_in_the_thread_is_raised_where_the_rows_are_needed() -> None:
    def make(number: int) -> int:
        if number == 1:
            raise KeyError("row 1")
        return number

    with Prefetch(make, 0, 3) as ahead:
        assert ahead.take() == 0
        with pytest.raises(KeyError, match="row 1"):
            ahead.take()
    assert not [t for t in threading.enumerate() if t.name.startswith("rows")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, total: int, done: int = 0, quiet: bool = False) -> list[str]:
    with Watch("train all", total, done, quiet=quiet, stream=stream) as watch:
        for _ in range(total - done):
            watch.update(1.25, 1e-3, 1000.0)
    return stream.getvalue().splitlines()


def test_a_log_gets_ten_lines_and_a_terminal_a_bar() -> None:
    lines = shown(io.StringIO(), 1000)
    assert len(lines) == 10
    assert lines[0].startswith("train all: step 100/1000 (10 %), loss 1.250, lr 1.0e-03, 1000 tokens/s, 0:00:0")
    assert lines[-1].startswith("train all: step 1000/1000 (100 %)")
    assert len(shown(io.StringIO(), 1000, done=500)) == 5
    assert shown(io.StringIO(), 1000, quiet=True) == []
    bar = shown(Terminal(), 50)
    assert "50/50" in bar[-1]
    assert "loss=1.250" in bar[-1]
    assert not any(line.startswith("train all: step") for line in bar)


def test_a_slow_log_gets_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("harness.runtime.progress_bar.time.monotonic", lambda: float(next(clock)))
    lines = shown(io.StringIO(), 100_000, done=99_970)
    assert len(lines) == 10  # three of ten seconds each make a line
    assert "0:04:30 left" in lines[0]


def test_the_record_tells_what_training_took(toy_run: Command, tmp_path: Path) -> None:
    done = toy_run("--method", "cgc_lora", "--json").json["record"]
    training = done["training"]
    assert training["packed"] is True
    assert training["micro_tokens"] == done["provenance"]["settings"]["micro_tokens"] == 512
    assert training["memory_estimate_bytes"] > 10 * done["parameters"]["stored"]
    assert 0 <= training["wait_seconds"] < training["seconds"]
    assert training["tokens_per_second"] == pytest.approx(training["tokens"] / training["seconds"])
    (run,) = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert set(line["tasks"]) <= {"colour", "first", "last"}
        assert line["grad_norm"] > 0
    assert sum(line["tokens"] for line in lines) == training["tokens"]


def test_checkpointed_activations_give_the_same_losses(toy_run: Command) -> None:
    """On another run folder, since the key is no part of the run."""
    found = []
    for value in ("false", "true"):
        done = toy_run(
            "--method", "cgc_lora", "--set", f"train.gradient_checkpointing={value}", "--json", "--out", value
        )
        assert done.status == 0, done.err
        lines = (Path(done.json["directory"]) / "train.jsonl").read_text().splitlines()
        found.append([(json.loads(line)["loss"], json.loads(line)["grad_norm"]) for line in lines])
    for plain, again in zip(*found, strict=True):
        assert again == pytest.approx(plain, rel=1e-5)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def larger_model(toy_model: Path, folder: Path) -> Path:
    """The toy's tokenizer with a model of 21 million numbers."""
    import shutil

    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    config = AutoConfig.from_pretrained(toy_model)
    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "max_position_embeddings": 512}
    config.update({**sizes, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64})
    torch.manual_seed(0)
    shutil.copytree(toy_model, folder)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("keys", [(), ("train.gradient_checkpointing=true", "train.micro_tokens=2048")])
def test_the_estimate_of_memory_is_within_a_quarter_of_the_peak(
    start: Command, toy_model: Path, tmp_path: Path, keys: tuple[str, ...]
) -> None:
    model = larger_model(toy_model, tmp_path / "model")
    settings = ["train.steps=4", "train.batch_size=48", "eval.per_task=1", "eval.max_new_tokens=2", *keys]
    assignments = [word for key in settings for word in ("--set", key)]
    run = start("run", "--method", "cgc_lora", "--suite", "toys", "--model", model, "--json", *assignments)
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, err
    training = json.loads(out)["record"]["training"]
    if training["peak_memory_bytes"] is None:
        pytest.skip("this system does not tell a process's peak")
    assert training["memory_estimate_bytes"] == pytest.approx(training["peak_memory_bytes"], rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora_all", "cgc_lora"])
def test_a_compiled_model_gives_the_same_losses(toy_run: Command, method: str) -> None:
    found = []
    for value in ("false", "true"):
        keys = ["--set", f"train.compile={value}", "--set", "train.steps=6", "--out", value]
        done = toy_run("--method", method, *keys, "--json")
        assert done.status == 0, done.err
        lines = (Path(done.json["directory"]) / "train.jsonl").read_text().splitlines()
        found.append([json.loads(line)["loss"] for line in lines])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
