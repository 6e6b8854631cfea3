"""What `harness bench` compares, on toys: that contenders are what they are called, never how fast they are."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from harness.bench.clock import Clock, paired
from harness.bench.contenders import LoopLinear, frozen, loop, peft_lora, twin
from harness.bench.measure import BenchPlan, BenchReport, bench, chosen, make_batch
from harness.bench.random_model import SHAPES, random_model
from harness.bench.report import render, to_json
from harness.data.routes import Routes
from harness.errors import UsageError
from harness.method import iter_linear
from harness.models.loading import LoadedModel
from harness.testing.toys import perturb
from methods.base import LoRAMethod
from methods.c_poly import CPoly
from methods.cgc_lora import CGCLoRA
from methods.lora_all import LoRAAll
from methods.moe_lora import MoELoRA

PLAN = BenchPlan(tokens=32, tasks=3, rounds=2, routes="tokens", threads=1)
TASKS = ["a", "b", "c"]
ROUTES = Routes(tuple(TASKS))


@pytest.fixture
def loaded(toy_llama: Callable[..., Any]) -> LoadedModel:
    model = toy_llama()
    return LoadedModel(
        model=model,
        tokenizer=None,
        device=torch.device("cpu"),
        dtype=torch.float64,
        n_parameters=sum(p.numel() for p in model.parameters()),
        max_context=None,
        encoder_decoder=False,
    )


def measured(loaded: LoadedModel, names: list[str], **plan: Any) -> BenchReport:
    return bench(loaded, "toy", chosen(names), dataclasses.replace(PLAN, **plan))


@pytest.mark.long
@pytest.mark.parametrize(
    "routes", [[2, 0, 2, 1], [[2] * 5 + [0], [1] * 6, [0] * 6, [1, 2] * 3]], ids=["rows", "tokens"]
)
@pytest.mark.parametrize(
    "method",
    [CGCLoRA(), MoELoRA(gate_scope="layer"), CPoly(rank=2), CPoly(rank=2, merge="output")],
    ids=["cgc", "moe", "factor", "output"],
)
def test_the_loop_computes_what_the_bank_computes(toy_llama: Any, method: LoRAMethod, routes: Any) -> None:
    bank = twin(toy_llama())
    adapter = method.attach(bank, TASKS, seed=0)
    perturb(adapter)
    looped = loop(toy_llama(), adapter)
    ids = torch.randint(97, (4, 6), generator=torch.Generator().manual_seed(1))
    gates = [n for n in adapter.trainable() if not n.endswith((".A", ".B"))]
    assert gates

    def outputs(forward: Any) -> tuple[Tensor, list[Tensor]]:
        adapter.begin_step("stage", 0)
        with adapter.route(torch.tensor(routes)):
            logits = forward(input_ids=ids).logits
            slopes = torch.autograd.grad(logits.square().mean(), [adapter.trainable()[n] for n in gates])
        return logits, list(slopes)

    (ours, our_slopes), (theirs, their_slopes) = outputs(bank), outputs(looped.forward)
    with adapter.off():
        assert (ours - bank(input_ids=ids).logits).abs().max() > 1e-3
    assert (ours - theirs).abs().max() < 1e-6
    for mine, other in zip(our_slopes, their_slopes, strict=True):
        assert mine.abs().max() > 0
        assert (mine - other).abs().max() < 1e-6


def test_a_loop_trains_every_expert_and_the_gates(loaded: LoadedModel) -> None:
    adapter = CGCLoRA().attach(twin(loaded.model), TASKS, seed=0)
    perturb(adapter)
    looped = loop(loaded.model, adapter)
    stacked = {n: p.detach().clone() for n, p in adapter.trainable().items()}
    before = [p.detach().clone() for p in looped.forward.parameters()]
    looped.step(make_batch(loaded, ROUTES, TASKS, dataclasses.replace(PLAN, tokens=768)), 0)
    moved = [not torch.equal(p, q) for p, q in zip(looped.forward.parameters(), before, strict=True)]
    trained = [p.requires_grad for p in looped.forward.parameters()]
    assert moved == trained
    assert sum(trained) == 14 * 2 * (7 + 3)  # layers, factors, experts
    for name, parameter in adapter.trainable().items():
        assert torch.equal(parameter, stacked[name]) == name.endswith((".A", ".B")), name


def test_methods_without_experts_have_no_loop(loaded: LoadedModel) -> None:
    with pytest.raises(UsageError, match="no experts"):
        loop(loaded.model, LoRAAll().attach(twin(loaded.model), TASKS, seed=0))


def test_pefts_lora_has_the_parameters_of_ours(loaded: LoadedModel) -> None:
    layers = [name for name, _ in iter_linear(loaded.model)]
    theirs = peft_lora(loaded.model, layers, 16)
    adapter = LoRAAll().attach(twin(loaded.model), TASKS, seed=0)
    assert theirs.optimiser is not None
    trained = [p for group in theirs.optimiser.param_groups for p in group["params"]]
    assert sorted(p.shape for p in trained) == sorted(p.shape for p in adapter.trainable().values())


def test_the_frozen_model_has_a_gradient_to_its_inputs_and_does_not_change(loaded: LoadedModel) -> None:
    seen: list[Tensor] = []

    def look(module: Any, inputs: Any, named: Any) -> None:
        seen.append(inputs[0] if inputs else named["hidden_states"])

    loaded.model.model.layers[0].register_forward_pre_hook(look, with_kwargs=True)
    before = {n: t.clone() for n, t in loaded.model.state_dict().items()}
    frozen(loaded.model).step(make_batch(loaded, ROUTES, TASKS, PLAN), 0)
    assert len(seen) == 1
    assert seen[0].is_leaf
    assert seen[0].grad is not None
    assert seen[0].grad.any()
    assert all(torch.equal(t, before[n]) for n, t in loaded.model.state_dict().items())


@pytest.mark.long
def test_a_report_has_a_row_for_each_kind_of_stage(loaded: LoadedModel) -> None:
    report = measured(loaded, ["cgc_lora", "lora_single", "moa"])
    rows = {(r.method, r.stage): r for r in report.rows}
    assert list(rows) == [("cgc_lora", "all"), ("lora_single", "task0"), ("moa", "alone-task0"), ("moa", "together")]
    cgc = rows["cgc_lora", "all"]
    assert (cgc.n_tasks, cgc.stored_rank, cgc.active_rank, cgc.peft_rank) == (3, 20, 16, 20)
    assert list(cgc.measured) == ["frozen", "peft", "ours", "loop"]
    assert cgc.n_trained == cgc.stored > cgc.active
    single = rows["lora_single", "task0"]
    assert (single.n_tasks, single.stored_rank, single.peft_rank) == (1, 48, 16)
    assert single.n_trained * 3 == single.stored
    assert single.loop_to_ours is None
    assert "experts" in single.absent["loop"]
    assert rows["moa", "together"].n_tasks == 3
    for row in report.rows:
        for ratio in (row.ours_to_frozen, row.ours_to_peft, row.loop_to_ours or row.ours_to_frozen):
            assert ratio is not None
            assert 0 < ratio.median < math.inf
        assert all(m.seconds > 0 and m.tokens_per_second > 0 for m in row.measured.values())
        assert all(m.peak_bytes is None and m.kernel_seconds is None for m in row.measured.values())


def test_a_model_is_left_as_it_was(loaded: LoadedModel) -> None:
    before = {n: t.clone() for n, t in loaded.model.state_dict().items()}
    names, threads = [n for n, _ in loaded.model.named_modules()], torch.get_num_threads()
    measured(loaded, ["moe_lora"], routes="rows")
    assert [n for n, _ in loaded.model.named_modules()] == names
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not loaded.model.training
    assert torch.get_num_threads() == threads
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_without_peft_the_row_says_so(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    report = measured(loaded, ["lora_all"])
    assert report.rows[0].ours_to_peft is None
    assert "mtlora-harness[peft]" in report.rows[0].absent["peft"]
    assert "mtlora-harness[peft]" in render(report)


class Greedy(LoRAAll):
    """A method whose adapter needs more memory than there is."""

    def attach(self, model: Any, tasks: Any, *, seed: int) -> Any:
        raise torch.OutOfMemoryError


@pytest.mark.long
def test_a_contender_that_runs_out_of_memory_is_named_and_the_others_are_measured(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(self: Any, x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(LoopLinear, "forward", no_memory)
    report = measured(loaded, ["cgc_lora", "lora_all"])
    assert [row.method for row in report.rows] == ["cgc_lora", "lora_all"]
    row = report.rows[0]
    assert row.absent == {"loop": "out of memory"}
    assert list(row.measured) == ["frozen", "peft", "ours"]
    assert row.loop_to_ours is None
    assert row.ours_to_peft is not None
    lines = [line.split() for line in render(report).splitlines()]
    assert [line[-3:] for line in lines if line[:1] == ["cgc_lora"]] == [["out", "of", "memory"]]
    assert [line[-1] for line in lines if line[:1] == ["lora_all"]] == ["–"]
    assert "smaller --tokens-per-step" in render(report)


def test_a_method_that_runs_out_of_memory_in_a_later_round_keeps_its_row(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = LoRAAll()
    attached = method.attach(twin(loaded.model), TASKS, seed=0)

    def begin_step(self: Any, stage: str, step: int) -> None:
        if step == 2:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(type(attached), "begin_step", begin_step)
    report = bench(loaded, "toy", {"lora_all": method}, PLAN)
    (row,) = report.rows
    assert list(row.measured) == ["frozen", "peft"]
    assert row.absent["ours"] == "out of memory"
    assert row.ours_to_peft is row.ours_to_frozen is None
    assert "out of memory" in render(report)
    assert to_json(report)["rows"][0]["absent"]["ours"] == "out of memory"


def test_a_method_whose_adapter_does_not_fit_is_named(loaded: LoadedModel) -> None:
    report = bench(loaded, "toy", {"greedy": Greedy(), "lora_all": LoRAAll()}, PLAN)
    assert [row.method for row in report.rows] == ["lora_all"]
    assert "greedy is not measured: out of memory" in render(report)


def test_the_interval_is_that_of_the_sign_test() -> None:
    assert paired([1.0] * 5, [1.0] * 5).low is None
    for n in range(6, 60):
        ratios = [float(i) for i in range(1, n + 1)]
        found = paired(ratios[::-1], [1.0] * n)
        assert found.low is not None
        assert found.high is not None
        k = int(found.low)  # fewer than k rounds lie below
        assert binom.cdf(k - 1, n, 0.5) <= 0.025 < binom.cdf(k, n, 0.5)
        assert found.high == n + 1 - k
        assert found.low <= found.median == (n + 1) / 2 <= found.high


def test_ratios_are_of_the_same_round() -> None:
    assert paired([1, 20, 3], [1, 10, 1]).median == 2


def test_a_step_that_waits_for_launches_is_said_to(loaded: LoadedModel) -> None:
    report = measured(loaded, ["cgc_lora"])
    row = report.rows[0]
    assert "bound by kernel launches" not in render(report)

    def on_gpu(wall_over_own: float) -> BenchReport:
        figures = {
            n: dataclasses.replace(m, kernel_seconds=m.seconds / wall_over_own, peak_bytes=2**31)
            for n, m in row.measured.items()
        }
        return dataclasses.replace(report, rows=[dataclasses.replace(row, measured=figures)])

    assert "cgc_lora is bound by kernel launches" in render(on_gpu(1.6))
    assert "bound by kernel launches" not in render(on_gpu(1.4))
    assert "2.0 GiB" in render(on_gpu(1.4))
    assert to_json(on_gpu(1.6))["rows"][0]["launch_bound"]["ours"] is True


def test_computing_time_is_taken_of_one_thread_alone() -> None:
    assert Clock(device=torch.device("cpu"), threads=1).kind == "cpu"
    assert Clock(device=torch.device("cpu"), threads=2).kind == "wall"


def test_fewer_blocks_keep_the_heads_share_of_the_work() -> None:
    small = random_model("135m", 1, "fp32", "cpu").model
    whole = SHAPES["135m"]
    block = sum(layer.weight.numel() for _, layer in iter_linear(small))
    head = small.get_output_embeddings().weight.numel()
    assert head / block == pytest.approx(whole.vocabulary * whole.width / (whole.blocks * block), rel=1e-3)
    with pytest.raises(UsageError, match=r"unknown shape '136m'\. Did you mean '135m'"):
        random_model("136m")


def test_the_command_prints_json(harness: Callable[..., Any], toy_model: Path) -> None:
    sizes = ["--model", toy_model, "--tokens-per-step", 32, "--rounds", 1, "--tasks", 2]
    done = harness("bench", "--method", "toy_lora,c_poly", *sizes, "--json")
    assert done.status == 0, done.err
    assert [r["method"] for r in done.json["rows"]] == ["toy_lora", "c_poly"]
    assert done.json["rows"][0]["peft_rank"] == 8
    assert done.json["rows"][1]["loop_to_ours"]["median"] > 0
    assert done.json["plan"]["tokens"] == 32
    assert "goals" in done.json


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "cgc_lroa"], "unknown method 'cgc_lroa'. Did you mean 'cgc_lora'"),
        (["--method", "majority"], "'majority' has no training step"),
        (["--model", "tiny", "--shape", "1b"], "--model cannot be combined with --shape"),
        (["--method", "lora_all", "--shape", "3b"], "unknown shape '3b'"),
    ],
)
def test_wrong_use_is_told(harness: Callable[..., Any], arguments: list[str], words: str) -> None:
    done = harness("bench", *arguments)
    assert done.status == 2
    assert words in done.err
