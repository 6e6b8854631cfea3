"""What the training loop promises: weights of the loss, order, resume, a LoRA per task."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.data.encoding import Encoded
from harness.data.mixture import Mixture, n_steps
from harness.data.rows import Rows
from harness.training.batch import IGNORED, padded, token_losses, weigh
from harness.training.packing import groups
from harness.training.step import learning_rate
from methods.no_finetune import NoFinetune

pytestmark = pytest.mark.numeric

Command = Callable[..., Any]


def row(task: str, prompt: int, target: int, start: int = 5) -> Encoded:
    tokens = [(start + 7 * i) % 90 + 1 for i in range(prompt + target)]
    return Encoded(task=task, prompt=tuple(tokens[:prompt]), target=tuple(tokens[prompt:]), cut=False)


STEP = [row("a", 5, 2), row("a", 9, 6, 11), row("b", 3, 1, 23), row("b", 12, 3, 31), row("c", 4, 4, 47)]


@pytest.mark.parametrize("kind", ["token", "example", "task"])
def test_the_loss_of_a_step_is_the_weighted_mean_of_single_rows(toy_llama: Any, kind: str) -> None:
    model = toy_llama()
    adapter = NoFinetune().attach(model, ["a", "b", "c"], seed=0)
    weighted = weigh(STEP, kind, ["a", "b", "c"])
    batches = [padded([weighted[i] for i in at], torch.device("cpu")) for at in groups([len(r) for r in STEP], 40)]
    assert len(batches) > 1
    ours = sum(float((token_losses(model, adapter, b, reads=False) * b.weights).sum()) for b in batches)

    # Independently: every row alone, its mean loss over target tokens from all logits, then the mean that is promised.
    means, tokens = [], []
    for r in STEP:
        ids = torch.tensor([[*r.prompt, *r.target]])
        log_p = model(input_ids=ids).logits[0].log_softmax(-1)
        picked = [-log_p[len(r.prompt) - 1 + j, t].item() for j, t in enumerate(r.target)]
        means.append(sum(picked) / len(picked))
        tokens.append(len(picked))
    if kind == "token":
        expected = float(np.average(means, weights=tokens))
    elif kind == "example":
        expected = float(np.mean(means))
    else:
        tasks = sorted({r.task for r in STEP})
        expected = float(
            np.mean(
                [
                    np.average(
                        [m for m, r in zip(means, STEP, strict=True) if r.task == t],
                        weights=[n for n, r in zip(tokens, STEP, strict=True) if r.task == t],
                    )
                    for t in tasks
                ]
            )
        )
    assert ours == pytest.approx(expected, abs=1e-6)  # the norms compute in float32


def test_labels_go_by_position_even_where_a_target_holds_the_padding_token(toy_llama: Any) -> None:
    rows = [Encoded(task="a", prompt=(4, 0, 7), target=(0, 0, 9), cut=False), row("a", 8, 2)]
    batch = padded(weigh(rows, "token", ["a"]), torch.device("cpu"))
    assert (batch.labels != IGNORED).view(2, -1).sum(1).tolist() == [3, 2]


def test_micro_batches_hold_every_row_once_and_keep_to_their_size() -> None:
    batches = groups([len(r) for r in STEP], 40)
    assert sorted(i for b in batches for i in b) == list(range(len(STEP)))
    assert all(len(b) == 1 or len(b) * max(len(STEP[i]) for i in b) <= 40 for b in batches)


def test_the_learning_rate_rises_linearly_then_falls_to_almost_nothing() -> None:
    rates = [learning_rate(i, 100, 1.0, 0.1) for i in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(1 / 90)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert all(learning_rate(i, 3, 1.0, 0.0) > 0 for i in range(3))


def mixture(counts: dict[str, int], batch_size: int, steps: int, seed: int = 0) -> Mixture:
    ends = np.cumsum(list(counts.values()))
    by_task = {t: np.arange(e - n, e) for (t, n), e in zip(counts.items(), ends, strict=True)}
    rows = Rows(split="train", dataset=None, by_task=by_task)  # type: ignore[arg-type]
    return Mixture(rows=rows, batch_size=batch_size, steps=steps, seed=seed)


def test_every_epoch_shows_every_row_once_in_another_order() -> None:
    plan = mixture({"a": 7, "b": 5}, batch_size=4, steps=6).plan(None, 1.0)
    seen = np.concatenate([plan.batch(i) for i in range(6)])
    first, second = seen[:12].tolist(), seen[12:].tolist()
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert plan.batch(4).tolist() == mixture({"a": 7, "b": 5}, 4, 6).plan(None, 1.0).batch(4).tolist()
    assert plan.batch(0).tolist() != mixture({"a": 7, "b": 5}, 4, 6, seed=1).plan(None, 1.0).batch(0).tolist()


def test_a_task_alone_gets_the_mixed_runs_steps_and_its_share_of_the_batch() -> None:
    plan = mixture({"a": 30, "b": 10}, batch_size=8, steps=5).plan(["b"], 1.0)
    assert (plan.batch_size, plan.steps) == (2, 5)
    assert Counter(plan.batch(0).tolist()).keys() <= set(range(30, 40))
    assert n_steps(40, 8, 2.5, None) == math.ceil(40 * 2.5 / 8)


def weights(folder: Path, method: str) -> dict[str, torch.Tensor]:
    (run,) = (folder / "runs").glob(f"{method}-*")
    return load_file(run / "adapter" / "adapter.safetensors")


def test_a_lora_per_task_is_lora_all_on_that_task_alone_bit_for_bit(toy_run: Command, tmp_path: Path) -> None:
    dropout = ["--set", "method.dropout=0.1"]
    toy_run("--method", "lora_single", *dropout)
    toy_run("--method", "lora_all", "--tasks", "first", "--set", f"train.batch_size={round(16 / 3)}", *dropout)
    single, alone = weights(tmp_path, "lora_single"), weights(tmp_path, "lora_all")
    mine = {k: v for k, v in single.items() if "first" in k}
    assert len(mine) == len(alone)
    for ours, theirs in zip(sorted(mine), sorted(alone), strict=True):
        assert torch.equal(mine[ours], alone[theirs]), (ours, theirs)
    assert any(float(v.abs().max()) > 0 for v in mine.values() if v.shape[1] == 16)  # a B factor has moved from zero


@pytest.mark.parametrize("method", ["cgc_lora", "lora_single"])
def test_a_run_interrupted_after_a_step_ends_with_the_same_bits(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from harness.runtime.signals import Interrupted
    from harness.training.trainer import EngineTrainer

    often = ["--method", method, "--set", "train.checkpoint_steps=1", "--set", "method.dropout=0.1"]
    toy_run(*often)
    whole = weights(tmp_path, method)
    log = next((tmp_path / "runs").glob("*/train.jsonl")).read_text().splitlines()
    (tmp_path / "runs").rename(tmp_path / "whole")

    step = EngineTrainer._step
    left = iter(range(3))

    def stop_after_three(self: EngineTrainer, *args: Any) -> Any:
        done = step(self, *args)
        if next(left, None) is None:
            raise Interrupted(2)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(EngineTrainer, "_step", stop_after_three)
        stopped = toy_run(*often)
    assert stopped.status == 130
    assert "same command" in stopped.err
    assert toy_run(*often).status == 0
    again = weights(tmp_path, method)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    resumed = next((tmp_path / "runs").glob("*/train.jsonl")).read_text().splitlines()
    strip = [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in (*log, *resumed)]
    assert strip[: len(log)] == strip[len(log) :]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_tasks(toy_run: Command, tmp_path: Path) -> None:
    failed = toy_run("--method", "lora_all", "--set", "train.lr=1e30", "--set", "train.clip=none")
    assert failed.status == 1
    assert "colour" in failed.err
    assert "smaller train.lr" in failed.err
    failure = json.loads(next((tmp_path / "runs").glob("*/failure.json")).read_text())
    assert failure["stage"] == "train"
    assert "step" in failure["where"]


def test_the_adapter_on_disk_loads_back_to_equal_outputs(toy_model: Path, toy_run: Command, tmp_path: Path) -> None:
    from harness.models.loading import load_model
    from harness.registry import method_class
    from harness.store.adapter import load_into

    toy_run("--method", "cgc_lora", "--set", "train.lr=0.05")
    (run,) = (tmp_path / "runs").iterdir()
    outputs = []
    for seed in (0, 1):
        loaded = load_model(str(toy_model), "fp32", "cpu")
        adapter = method_class("cgc_lora")().attach(loaded.model, ["colour", "first", "last"], seed=seed)
        load_into(run / "adapter", adapter)
        with adapter.route(torch.tensor([1, 2])), torch.no_grad():
            outputs.append(loaded.model(torch.tensor([[5, 6, 7], [5, 6, 7]])).logits)
    assert torch.equal(*outputs)
    assert not torch.allclose(outputs[0][0], outputs[0][1])
