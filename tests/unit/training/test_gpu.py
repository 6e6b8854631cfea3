"""What only a GPU can show about training: numbers, bits, memory. Run by hand: pytest -m gpu."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.bench.contenders import twin
from harness.bench.random_model import random_model
from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.method import Trait
from harness.models.loading import LoadedModel
from harness.registry import method_class
from harness.training.attention import attention, checkpoint_activations
from harness.training.optimiser import trained_parameters
from harness.training.packing import Layout, choose_layout
from harness.training.step import Stage, StepResult, StepRunner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
METHODS = ("lora_all", "cgc_lora", "moe_lora", "c_poly", "lora_single", "moa")
ROUTES = Routes(tuple(f"task{i}" for i in range(4)))
OWN = Layout(packed=True)
FLEX = Layout(packed=True, attention="flex_attention", multiple=128)


def rows(n: int, longest: int = 60, seed: int = 0) -> list[Encoded]:
    drawn = torch.Generator().manual_seed(seed)

    def tokens(k: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 500, (k,), generator=drawn).tolist())

    lengths = torch.randint(longest // 3, longest, (n,), generator=drawn).tolist()
    return [
        Encoded(task=ROUTES.tasks[i % 4], prompt=tokens(k), target=tokens(9), truncated=False)
        for i, k in enumerate(lengths)
    ]


class Trained:
    """A method's training loop on a copy of a model."""

    def __init__(self, loaded: LoadedModel, name: str, layout: Layout = OWN, **config: Any) -> None:
        method: Any = method_class(name)()
        self.loaded = replace(loaded, model=twin(loaded.model).eval())
        self.adapter = method.attach(self.loaded.model, ROUTES.tasks, seed=0)
        stage = Stage(
            name="all",
            steps=100,
            key=(0,),
            reads=Trait.LABEL_FREE in method.traits,
            trained=trained_parameters(self.adapter, method),
        )
        settings = TrainConfig(**{"lr": 1e-3, "micro_tokens": 4096, **config})
        self.steps = StepRunner(self.loaded, self.adapter, settings, stage, layout)

    def step(self, number: int, chosen: list[Encoded]) -> StepResult:
        with attention(self.loaded.model, self.steps.division.layout.attention):
            self.loaded.model.train()
            return self.steps.step(number, chosen, ROUTES)

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().clone() for name, p in self.adapter.trainable().items()}


@pytest.fixture(scope="module")
def half() -> LoadedModel:
    return random_model("135m", 4, "bf16", "cuda")


@pytest.mark.parametrize("name", METHODS)
def test_three_float64_steps_are_those_of_the_cpu(name: str) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        single = random_model("135m", 1, "fp32", "cpu")
        model = single.model.double().to(device)
        loaded = replace(single, model=model, dtype=torch.float64, device=torch.device(device))
        trained = Trained(loaded, name, micro_tokens=300)
        ends.append(([trained.step(i, rows(12, seed=i)).loss for i in range(3)], trained.weights()))
    (cpu_losses, cpu), (losses, weights) = ends
    assert losses == pytest.approx(cpu_losses, rel=1e-9)
    for key, tensor in cpu.items():
        torch.testing.assert_close(weights[key], tensor, rtol=1e-6, atol=1e-8)


def test_a_step_with_flex_attention_has_the_same_bits_when_repeated(half: LoadedModel) -> None:
    ends = []
    for _ in range(2):
        trained = Trained(half, "cgc_lora", FLEX)
        ends.append(([trained.step(i, rows(16, 300, i)).loss for i in range(2)], trained.weights()))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(tensor, ends[1][1][key]) for key, tensor in ends[0][1].items())


def test_long_packed_sequences_with_flex_attention_have_the_loss_of_the_own_kernel(half: LoadedModel) -> None:
    """The trial before training has 40 tokens, and flex attention works in blocks of 128."""
    flex, own = (Trained(half, "lora_all", layout).step(0, rows(24, 300)).loss for layout in (FLEX, OWN))
    assert flex == pytest.approx(own, rel=2e-3)


def test_sequences_are_packed_with_a_kernel_of_its_own(half: LoadedModel) -> None:
    trained = Trained(half, "lora_all")
    layout = choose_layout(trained.loaded, trained.adapter, TrainConfig(), reads=False)
    assert (layout.packed, layout.attention is None) == (True, False)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_loss() -> None:
    loaded, chosen = random_model("135m", 4, "fp32", "cuda"), rows(40, 300)
    rest = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    whole = Trained(loaded, "lora_all", micro_tokens=8192).step(0, chosen)
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((rest + 0.6 * (peak - rest)) / total)
    try:
        trained = Trained(loaded, "lora_all", micro_tokens=8192)
        halved = trained.step(0, chosen)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert trained.steps.division.micro_tokens < 8192
    assert halved.loss == pytest.approx(whole.loss, rel=1e-5)


def test_checkpointing_keeps_the_loss_and_needs_less_memory(half: LoadedModel) -> None:
    found = []
    for on in (False, True):
        trained = Trained(half, "cgc_lora")
        checkpoint_activations(trained.loaded.model, on)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = trained.step(0, rows(24, 200)).loss
        found.append((loss, torch.cuda.max_memory_allocated() - before))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-3)
    assert found[1][1] < 0.8 * found[0][1]


def test_a_folded_adapter_computes_what_its_route_does(half: LoadedModel) -> None:
    trained = Trained(half, "cgc_lora")
    for name, parameter in trained.adapter.trainable().items():
        if ".B" in name:
            torch.nn.init.normal_(parameter, 0, 0.02)
    ids = torch.randint(3, 500, (4, 40), device="cuda")
    with torch.no_grad(), trained.adapter.route(torch.zeros(4, dtype=torch.long)):
        routed = trained.loaded.model(input_ids=ids).logits.float()
    with torch.no_grad(), trained.adapter.apply(trained.adapter.fold("task0"), merge=False):
        folded = trained.loaded.model(input_ids=ids).logits.float()
    assert float((routed - folded).abs().max()) < 0.05 * float(routed.abs().max())


def test_a_float16_step_that_overflows_is_left_out() -> None:
    trained = Trained(random_model("135m", 2, "fp16", "cuda"), "lora_all")
    before = trained.weights()
    trained.steps.scaler.load_state_dict({**trained.steps.scaler.state_dict(), "scale": 2.0**40})
    trained.step(0, rows(8))
    assert all(torch.equal(tensor, before[key]) for key, tensor in trained.weights().items())
    assert trained.steps.scaler.get_scale() < 2.0**40


@pytest.mark.parametrize(("precision", "package"), [("nf4", "bitsandbytes"), ("int8", "torchao")])
def test_a_quantised_model_trains(toy_model: Any, precision: Any, package: str) -> None:
    from harness.models.loading import load_model

    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}")
    trained = Trained(load_model(str(toy_model), precision, "cuda"), "cgc_lora", Layout(packed=False))
    fits = [tuple(token % 90 for token in (*row.prompt, *row.target)) for row in rows(8)]
    short = [Encoded(task=ROUTES.tasks[0], prompt=ids[:-9], target=ids[-9:], truncated=False) for ids in fits]
    losses = [trained.step(i, short).loss for i in range(5)]
    assert losses[-1] < losses[0]
