"""MTL-LoRA, MultiLoRA, M-LoRA and Align-LoRA through the installed command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Command = Callable[..., Any]


# A LoRA of rank 16 for the seven linear layers of each of the toy model's two blocks: 16 (d_in + d_out) each.
RANK_16 = 2 * 16 * sum((32 + 32, 32 + 16, 32 + 16, 32 + 32, 32 + 64, 32 + 64, 64 + 32))


@pytest.mark.parametrize(
    ("method", "ablation"),
    [("mtl_lora", "no_lambda"), ("multi_lora", "no_scaling"), ("m_lora", "one_head"), ("align_lora", "mmd")],
)
def test_the_method_and_an_ablation_of_it_train_and_fold_to_the_rank_of_the_budget(
    toy_run: Command, method: str, ablation: str
) -> None:
    whole, changed = (
        toy_run("--method", method, *more, "--budget", "active:16", "--json") for more in ((), ("--ablation", ablation))
    )
    assert whole.status == 0, whole.err
    assert changed.status == 0, changed.err
    one, other = whole.json["record"], changed.json["record"]
    assert one["spec"]["method"]["name"] == other["spec"]["method"]["name"] == method
    assert one["training"]["steps"] == other["training"]["steps"] == 4
    assert one["parameters"]["active"] == other["parameters"]["active"] == RANK_16
    assert one["run_id"] != other["run_id"]


def test_gates_of_heads_and_what_was_aligned_are_artefacts_of_a_run(toy_run: Command) -> None:
    gates, alignment = (
        json.loads((Path(toy_run("--method", method, "--json").json["directory"]) / "artefacts" / name).read_text())
        for method, name in (("mtl_lora", "gates.json"), ("align_lora", "alignment.json"))
    )
    for by_task in gates.values():
        assert set(by_task) == {"colour", "first", "last"}
        assert all(len(weights) == 3 and sum(weights) == pytest.approx(1, abs=1e-4) for weights in by_task.values())
    assert alignment["micro_batches"] >= 4
    assert alignment["tasks_per_micro_batch"] > 1
    assert alignment["mean_loss"] > 0


def test_smaller_micro_batches_have_fewer_tasks_to_align(toy_run: Command, tmp_path: Path) -> None:
    counted = []
    for size in (4096, 64):
        out = ("--out", tmp_path / str(size))
        done = toy_run("--method", "align_lora", "--set", f"train.micro_tokens={size}", *out, "--json")
        counted.append(json.loads((Path(done.json["directory"]) / "artefacts" / "alignment.json").read_text()))
    assert counted[0]["tasks_per_micro_batch"] > counted[1]["tasks_per_micro_batch"]
    assert counted[0]["micro_batches"] < counted[1]["micro_batches"]


def test_the_papers_settings_are_those_of_the_presets(harness: Command) -> None:
    mtl, align = (harness("list", name).out for name in ("mtl_lora", "align_lora"))
    assert "q_proj,k_proj,v_proj,o_proj" in mtl
    assert "gate_proj,up_proj,down_proj" in align
