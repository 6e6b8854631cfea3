"""Training, prediction and export on a quantised base model through the installed command."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
PRECISIONS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs the package {package}"),
    )
    for name, package in {"nf4": "bitsandbytes", "int8": "torchao"}.items()
]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_adapter_is_trained_on_quantised_weights_and_merged_into_them(
    toy_run: Command, harness: Command, toy_model: Path, tmp_path: Path, precision: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from harness.models.loading import load_model

    keys = ["--set", f"train.precision={precision}", "--set", "train.lr=0.05"]
    done = toy_run("--method", "cgc_lora", *keys, "--json")
    assert done.status == 0, done.err
    record = done.json["record"]
    assert record["provenance"]["settings"]["quantised"] == precision
    assert record["parameters"]["base"] == load_model(str(toy_model), "fp32", "cpu").n_parameters
    run = Path(done.json["directory"])
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    assert len({line["loss"] for line in lines}) == 4
    merged = harness("export", run, "--out", tmp_path / "merged", "--format", "merged", "--task", "colour")
    assert merged.status == 0, merged.err
    assert f"merged into the dequantised {precision} weights" in merged.err
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    alone = toy_run("--method", "no_finetune", "--tasks", "colour", "--model", tmp_path / "merged", "--json")
    assert alone.status == 0, alone.err
    assert texts(Path(alone.json["directory"])) == texts(run)


def texts(run: Path) -> dict[str, str]:
    lines = (run / "predictions" / "colour.jsonl").read_text().splitlines()
    return {line["id"]: line["text"] for line in map(json.loads, lines)}
