"""The description of a training in the run's record and log."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


def test_the_record_has_time_memory_and_tokens_of_the_training(toy_run: Command, tmp_path: Path) -> None:
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


@pytest.mark.long
def test_checkpointed_activations_give_the_same_losses(toy_run: Command) -> None:
    """On another run folder, since the key is no part of the run."""
    found = []
    for value in ("false", "true"):
        done = toy_run(
            "--method", "cgc_lora", "--set", f"train.gradient_checkpointing={value}", "--json", "--out", value
        )
        assert done.status == 0, done.err
        assert "without compilation" not in done.err
        lines = (Path(done.json["directory"]) / "train.jsonl").read_text().splitlines()
        found.append([(json.loads(line)["loss"], json.loads(line)["grad_norm"]) for line in lines])
    for plain, again in zip(*found, strict=True):
        assert again == pytest.approx(plain, rel=1e-5)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_memory_is_estimated_for_blocks_of_different_widths(harness: Command, toy_model: Path, tmp_path: Path) -> None:
    """Gemma 3n states a list of inner widths; the estimate has their mean, and the weights that they make."""
    import shutil

    import torch
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "laurel_rank": 4}
    layers = {"num_hidden_layers": 2, "num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 2}
    vocabulary = {"vocab_size": 97, "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 4}
    found = []
    for widths in ([24, 24], [16, 32], [32, 32]):
        folder = tmp_path / f"gemma-{widths[0]}-{widths[1]}"
        shutil.copytree(toy_model, folder)
        torch.manual_seed(0)
        rest = {"eos_token_id": 0, "pad_token_id": 0, "bos_token_id": 0, "activation_sparsity_pattern": [0.0, 0.0]}
        config = Gemma3nTextConfig(**sizes, **layers, **vocabulary, **rest, intermediate_size=widths)
        Gemma3nForCausalLM(config).save_pretrained(folder)
        plan = harness("run", "--method", "lora_all", "--suite", "toys", "--model", folder, "--dry-run", "--json")
        assert plan.status == 0, plan.err
        found.append(plan.json["plan"]["memory_bytes"])
    assert found[0] == found[1] < found[2]


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
@pytest.mark.timeout(900)
def test_the_estimate_of_memory_is_close_to_the_peak(start: Command, toy_model: Path, tmp_path: Path) -> None:
    """Of a whole run; tests/unit/training/test_memory.py has other methods and layouts, and trainings alone."""
    model = larger_model(toy_model, tmp_path / "model")
    settings = ["train.steps=4", "train.batch_size=48", "eval.per_task=1", "eval.max_new_tokens=2"]
    assignments = [word for key in settings for word in ("--set", key)]
    words = ["--method", "cgc_lora", "--suite", "toys", "--model", model, "--json", *assignments]
    run = start("run", *words)
    out, err = run.communicate(timeout=800)
    assert run.returncode == 0, err
    training = json.loads(out)["record"]["training"]
    if training["peak_memory_bytes"] is None:
        pytest.skip("this system does not tell a process's peak")
    assert training["memory_estimate_bytes"] == pytest.approx(training["peak_memory_bytes"], rel=0.25)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.parametrize(
    "method",
    [
        pytest.param("lora_single", marks=pytest.mark.long),
        pytest.param("cgc_lora", marks=pytest.mark.slow),
        pytest.param("moa", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_model_gives_the_same_losses(toy_run: Command, method: str) -> None:
    found = []
    for value in ("false", "true"):
        keys = ["--set", f"train.compile={value}", "--set", "train.steps=6", "--out", value]
        done = toy_run("--method", method, *keys, "--json")
        assert done.status == 0, done.err
        lines = (Path(done.json["directory"]) / "train.jsonl").read_text().splitlines()
        found.append([json.loads(line)["loss"] for line in lines])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
