"""Packed rows: the same mathematics as padded rows, without the padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logged import messages
from torch import nn

from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded
from harness.method import Adapter, Method, Trait
from harness.models.loading import LoadedModel
from harness.registry import method_class
from harness.testing.toys import perturb
from harness.training.attention import checkpoint_activations
from harness.training.batch import loss_weights, packed, padded, token_losses, total_weight, weigh
from harness.training.packing import Layout, bins, choose_layout, groups
from harness.training.step import Loop, Stage

pytestmark = pytest.mark.numeric

TASKS = ("one", "two", "three")
PACKED, PADDED = Layout(packed=True), Layout(packed=False)
LOSSES = ("token", "example", "task")
# The toy computes in float64, but its norms in float32: where an input of a norm is rounded another way on some CPU,
# its output differs by 6e-8. Mistakes of packing are larger than 1e-4.
CLOSE = 1e-6


def loaded(model: Any) -> LoadedModel:
    return LoadedModel(
        model=model,
        tokenizer=None,
        device=torch.device("cpu"),
        dtype=next(model.parameters()).dtype,
        n_parameters=0,
        max_context=256,
        encoder_decoder=bool(model.config.is_encoder_decoder),
    )


def make_rows(n: int = 11, seed: int = 0, vocabulary: int = 97) -> list[Encoded]:
    draw = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(t) for t in draw.integers(1, vocabulary, draw.integers(low, high)))

    return [Encoded(task=TASKS[i % 3], prompt=tokens(1, 30), target=tokens(1, 12), cut=False) for i in range(n)]


def make_loop(model: Any, method: Method, layout: Layout, **config: Any) -> Loop:
    adapter = method.attach(model, TASKS, seed=3)
    perturb(adapter)
    parameters = adapter.trainable()
    stage = Stage(
        name="all",
        steps=10,
        key=(3,),
        reads=Trait.LABEL_FREE in method.traits,
        parameters=parameters,
        factors=dict.fromkeys(parameters, 1.0),
    )
    return Loop(loaded(model), adapter, TrainConfig(**{"clip": None, **config}), stage, layout)


def gradients(loop: Loop, rows: Sequence[Encoded]) -> tuple[list[float], dict[str, torch.Tensor | None]]:
    """The losses of a step, over all tasks and of each, and the gradients that the optimiser gets."""
    found: dict[str, torch.Tensor | None] = {}

    def copy(*_: Any) -> None:
        found.update({n: None if p.grad is None else p.grad.clone() for n, p in loop.stage.parameters.items()})

    handle = loop.optimiser.register_step_pre_hook(copy)
    loop.loaded.model.train()
    result = loop.step(4, rows, TASKS)
    loop.loaded.model.eval()
    handle.remove()
    return [result.loss, *result.by_task.values()], found


def assert_same(left: Any, right: Any, tolerance: float) -> None:
    assert left[0] == pytest.approx(right[0], rel=tolerance, abs=tolerance)
    assert left[1].keys() == right[1].keys()
    largest = 0.0
    for name, gradient in left[1].items():
        other = right[1][name]
        assert (gradient is None) == (other is None), name
        if gradient is not None and other is not None:
            assert torch.allclose(gradient, other, rtol=tolerance, atol=tolerance), name
            largest = max(largest, float(gradient.abs().max()))
    assert largest > 1e-4  # or else nothing was compared


def reference(loop: Loop, rows: Sequence[Encoded], kind: str) -> float:
    """The loss by the design's words, a row at a time, in plain Python."""
    sums, weights = 0.0, 0.0
    per_task = {t: sum(len(r.target) for r in rows if r.task == t) for t in TASKS}
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.target]])
        with torch.no_grad(), loop.adapter.route(torch.tensor([TASKS.index(row.task)])):
            logits = loop.loaded.model(input_ids=ids).logits[0].log_softmax(-1)
        nats = [-float(logits[len(row.prompt) - 1 + k, token]) for k, token in enumerate(row.target)]
        weight = {"token": 1.0, "example": 1 / len(row.target), "task": 1 / per_task[row.task]}[kind]
        sums += weight * sum(nats)
        weights += weight * len(nats)
    return sums / weights


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("name", ["lora_all", "lora_single", "cgc_lora", "c_poly", "moe_lora", "moa"])
def test_packed_rows_give_the_loss_and_gradients_of_padded_rows(
    toy_llama: Callable[..., Any], name: str, kind: str
) -> None:
    rows, method = make_rows(), method_class(name)()
    found = [
        gradients(make_loop(toy_llama(), method, layout, loss=kind, micro_tokens=micro), rows)
        for layout, micro in ((PACKED, 1000), (PACKED, 70), (PADDED, 1000), (PADDED, 16))
    ]
    for other in found[1:]:
        assert_same(found[0], other, CLOSE)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_loss_is_what_the_design_says_of_its_weighting(toy_llama: Callable[..., Any], kind: str) -> None:
    rows = make_rows()
    loop = make_loop(toy_llama(), method_class("cgc_lora")(), PACKED, loss=kind)
    expected = {k: reference(loop, rows, k) for k in LOSSES}
    assert gradients(loop, rows)[0][0] == pytest.approx(expected[kind], abs=CLOSE)
    assert len({round(loss, 6) for loss in expected.values()}) == 3
    weights = loss_weights(rows, kind)
    assert sum(w.weight * len(w.row.target) for w in weigh(rows, kind, TASKS)) == pytest.approx(1.0)
    assert total_weight(rows, weights) == pytest.approx(
        {"token": sum(len(r.target) for r in rows), "example": 11, "task": 3}[kind]
    )


def test_filling_a_packed_row_changes_nothing(toy_llama: Callable[..., Any]) -> None:
    rows, found = make_rows(), []
    for name in ("cgc_lora", "moa"):
        for multiple in (1, 128):
            layout = Layout(packed=True, multiple=multiple)
            found.append(gradients(make_loop(toy_llama(), method_class(name)(), layout, micro_tokens=1000), rows))
        assert_same(found[-1], found[-2], CLOSE)


def test_only_predicted_positions_get_logits(toy_llama: Callable[..., Any]) -> None:
    model, rows = toy_llama(), weigh(make_rows(), "token", TASKS)
    adapter = method_class("lora_all")().attach(model, TASKS, seed=0)
    batch = packed(rows, torch.device("cpu"))
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:2]))
    with adapter.route(batch.routes):
        losses = token_losses(model, adapter, batch, reads=False)
    n_targets = sum(len(w.row.target) for w in rows)
    assert seen == [(1, n_targets)]
    assert losses.shape == (n_targets,)
    assert batch.inputs["input_ids"].shape == (1, sum(len(w.row) for w in rows))
    assert "attention_mask" not in batch.inputs


def test_gradient_checkpointing_changes_no_gradient_and_leaves_no_hook(toy_llama: Callable[..., Any]) -> None:
    rows, method = make_rows(), method_class("cgc_lora")()
    plain = gradients(make_loop(toy_llama(), method, PACKED), rows)
    loop = make_loop(toy_llama(), method, PACKED)
    model = loop.loaded.model
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    before = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    checkpoint_activations(model, True)
    again = gradients(loop, rows)
    checkpoint_activations(model, False)
    assert_same(plain, again, CLOSE)
    n_micro = len(PACKED.split([len(r) for r in rows], loop.micro_tokens))
    assert len(calls) == 2 * n_micro  # each forward was made a second time
    assert {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()} == before
    calls.clear()
    gradients(loop, rows)
    assert len(calls) == 1


def test_out_of_memory_halves_the_micro_batches_and_makes_the_step_again_with_the_same_numbers(
    toy_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, method = make_rows(), method_class("cgc_lora")()
    whole = make_loop(toy_llama(), method, PACKED, micro_tokens=1000)
    small = make_loop(toy_llama(), method, PACKED, micro_tokens=1000)
    forward, sizes = type(small.loaded.model).forward, []

    def cramped(self: nn.Module, **inputs: Any) -> Any:
        sizes.append(inputs["input_ids"].numel())
        if sizes[-1] > 120:
            raise torch.OutOfMemoryError("no room")
        return forward(self, **inputs)

    expected = whole.step(0, rows, TASKS)
    monkeypatch.setattr(type(small.loaded.model), "forward", cramped)
    result = small.step(0, rows, TASKS)
    assert sizes[0] > 120 >= max(sizes[-3:])
    assert small.micro_tokens <= 120
    assert result.loss == pytest.approx(expected.loss, abs=CLOSE)
    assert result.by_task == pytest.approx(expected.by_task, abs=CLOSE)
    for name, parameter in small.stage.parameters.items():
        assert torch.allclose(parameter, whole.stage.parameters[name], atol=CLOSE), name
    halved = small.micro_tokens
    small.step(1, rows, TASKS)
    assert small.micro_tokens == halved


def test_a_single_row_without_room_is_an_error_that_says_what_to_do(
    toy_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.errors import TrainingError

    loop = make_loop(toy_llama(), method_class("lora_all")(), PACKED)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(type(loop.loaded.model), "forward", full)
    with pytest.raises(TrainingError, match=r"single row.*train\.max_length"):
        loop.step(0, make_rows(), TASKS)


class Runny(nn.Module):
    """A language model that mixes all tokens of a row before its layers, as one with a running state does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **inputs: Any) -> Any:
        states = self.model.get_input_embeddings()(input_ids)
        return self.model(inputs_embeds=states.cumsum(1), position_ids=position_ids, **inputs)


def chosen(model: Any, adapter: Adapter | None = None, **config: Any) -> tuple[Layout, list[str]]:
    if adapter is None:
        adapter = method_class("cgc_lora")().attach(model, TASKS, seed=0)
    with messages() as said:
        layout = choose_layout(loaded(model), adapter, TrainConfig(**config), False)
    return layout, said


def test_a_model_that_takes_packed_rows_gets_them(toy_llama: Callable[..., Any]) -> None:
    layout, said = chosen(toy_llama())
    assert layout == PACKED
    assert said == []


def test_what_a_stage_trains_does_not_decide_how_rows_stand(toy_llama: Callable[..., Any]) -> None:
    model = toy_llama()
    adapter = method_class("lora_single")().attach(model, TASKS, seed=0)
    trained = {n: n.endswith("three") for n in adapter.trainable()}
    for name, parameter in adapter.trainable().items():
        parameter.requires_grad_(trained[name])
    assert chosen(model, adapter=adapter)[0] == PACKED
    with torch.no_grad():
        assert chosen(model, adapter=adapter)[0] == PACKED
    assert {n: p.requires_grad for n, p in adapter.trainable().items()} == trained
    assert all(p.grad is None for p in adapter.trainable().values())


def test_a_model_that_mixes_packed_rows_is_found_out_and_padded(toy_llama: Callable[..., Any]) -> None:
    model = Runny(toy_llama())
    layout, said = chosen(model, adapter=Nothing(model))
    assert not layout.packed
    assert len(said) == 1
    assert "padded instead of packed" in said[0]
    assert "differs" in said[0]


def test_models_known_not_to_take_packed_rows_are_padded(toy_llama: Callable[..., Any]) -> None:
    import transformers as t

    ends = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    sizes = {**ends, "hidden_size": 32, "num_hidden_layers": 2}
    torch.manual_seed(0)
    bloom = t.BloomForCausalLM(t.BloomConfig(**ends, hidden_size=32, n_layer=2, n_head=4))
    mamba = t.MambaForCausalLM(t.MambaConfig(**sizes, state_size=4))
    window = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": 64}
    mistral = t.MistralForCausalLM(t.MistralConfig(**sizes, **window))
    t5 = t.T5ForConditionalGeneration(t.T5Config(**ends, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8))
    gpt2 = t.GPT2LMHeadModel(t.GPT2Config(**ends, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    for model, expected in ((bloom, False), (mamba, False), (mistral, False), (t5, False)):
        layout, _ = chosen(model.eval().requires_grad_(False), adapter=Nothing(model), max_length=128)
        assert layout.packed == expected, type(model).__name__
    assert chosen(mistral, adapter=Nothing(mistral), max_length=64)[0].packed
    # absolute positions that start again in each row are what the row would have had alone
    assert chosen(gpt2.eval().requires_grad_(False), adapter=Nothing(gpt2), max_length=32)[0].packed
    assert not chosen(toy_llama(), packing="off")[0].packed


class Nothing:
    """An adapter that adds nothing, with one parameter through which every loss goes."""

    def __init__(self, model: nn.Module) -> None:
        self.one = next(model.parameters()).requires_grad_(True)

    def route(self, labels: torch.Tensor) -> Any:
        from contextlib import nullcontext

        return nullcontext()

    def trainable(self) -> dict[str, nn.Parameter]:
        return {"one": self.one}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 60))
def test_every_row_is_in_one_micro_batch_that_has_room_for_it(lengths: list[int], capacity: int) -> None:
    for found, size in ((bins(lengths, capacity), sum), (groups(lengths, capacity), lambda x: len(x) * max(x))):
        assert sorted(i for part in found for i in part) == list(range(len(lengths)))
        for part in found:
            assert len(part) == 1 or size([lengths[i] for i in part]) <= capacity
    # First fit leaves no two micro-batches that would fit into one.
    rooms = sorted(sum(lengths[i] for i in part) for part in bins(lengths, capacity))
    assert len(rooms) < 2 or rooms[0] + rooms[1] > capacity


def benchmark_lengths(n: int, seed: int) -> list[int]:
    """Lengths of rows as PromptCBLUE's are spread: log-normal, 5 to 95 % quantiles about 60 to 900 tokens."""
    draw = np.random.default_rng(seed)
    return [int(x) for x in np.clip(np.exp(draw.normal(math.log(160), 0.85, n)), 20, 1024)]


def test_at_most_three_percent_of_a_packed_row_is_empty() -> None:
    empty = total = 0
    for step in range(50):
        lengths = benchmark_lengths(64, step)
        parts = bins(lengths, 4096)
        filled = [sum(lengths[i] for i in part) for part in parts]
        # on a GPU rows are filled up to a multiple of 128; all but the step's last row could hold 4096
        empty += sum(-used % 128 for used in filled) + sum(4096 - used - -used % 128 for used in filled[:-1])
        total += sum(filled)
    assert empty / (total + empty) < 0.03


def test_padded_rows_have_their_own_losses_whatever_stands_beside_them(toy_llama: Callable[..., Any]) -> None:
    model, rows = toy_llama(), weigh(make_rows(4), "token", TASKS)
    adapter = method_class("lora_all")().attach(model, TASKS, seed=0)
    with torch.no_grad():
        batch = padded(rows, torch.device("cpu"))
        with adapter.route(batch.routes):
            together = token_losses(model, adapter, batch, reads=False).view(4, -1)
        for i, row in enumerate(rows):
            alone = padded([row], torch.device("cpu"))
            with adapter.route(alone.routes):
                own = token_losses(model, adapter, alone, reads=False)
            assert torch.allclose(together[i, -len(own) :], own, atol=CLOSE)
            assert float(together[i, : -len(own)].abs().sum()) == 0.0
