"""Sequences are packed where a trial shows that the model supports it, and every micro-batch has room for its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logged import messages
from torch import nn
from toy_steps import PACKED, TASKS, as_loaded

from harness.config.spec import TrainConfig
from harness.errors import TrainingError
from harness.method import Adapter, iter_linear
from harness.registry import method_class
from harness.training.packing import Layout, bins, choose_layout, groups

pytestmark = pytest.mark.numeric


class Nothing:
    """An adapter that adds nothing, with one parameter through which every loss goes."""

    def __init__(self, model: nn.Module) -> None:
        self.one = next(model.parameters()).requires_grad_(True)

    def route(self, labels: torch.Tensor, examples: torch.Tensor | None = None) -> AbstractContextManager[None]:
        return nullcontext()

    def off(self) -> AbstractContextManager[None]:
        return nullcontext()

    def trainable(self) -> dict[str, nn.Parameter]:
        return {"one": self.one}


class Runny(nn.Module):
    """A language model that mixes all tokens of its input before its layers, as one with a running state does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **inputs: Any) -> Any:
        states = self.model.get_input_embeddings()(input_ids)
        return self.model(inputs_embeds=states.cumsum(1), position_ids=position_ids, **inputs)


def chosen(model: Any, adapter: Adapter | None = None, **config: Any) -> tuple[Layout, list[str]]:
    if adapter is None:
        adapter = method_class("cgc_lora")().attach(model, TASKS, seed=0)
    with messages() as logged:
        layout = choose_layout(as_loaded(model), adapter, TrainConfig(**config), False)
    return layout, logged


def test_a_model_that_takes_packed_rows_gets_them(toy_llama: Callable[..., Any]) -> None:
    layout, logged = chosen(toy_llama())
    assert layout == PACKED
    assert logged == []


def test_what_a_stage_trains_does_not_decide_the_layout(toy_llama: Callable[..., Any]) -> None:
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


def test_a_model_that_mixes_packed_sequences_is_detected_and_padded(toy_llama: Callable[..., Any]) -> None:
    model = Runny(toy_llama())
    layout, logged = chosen(model, adapter=Nothing(model))
    assert not layout.packed
    assert len(logged) == 1
    assert "padded instead of packed" in logged[0]
    assert "differs" in logged[0]


class Refusing(nn.Module):
    """A language model that supports no packed row: its kernel refuses restarting positions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, position_ids: torch.Tensor | None = None, **inputs: Any) -> Any:
        if position_ids is not None and bool((position_ids[:, 1:] <= position_ids[:, :-1]).any()):
            raise NotImplementedError("no kernel for restarting positions")
        return self.model(position_ids=position_ids, **inputs)


def test_a_model_that_refuses_packed_rows_is_padded_and_the_refusal_is_logged(toy_llama: Callable[..., Any]) -> None:
    model = Refusing(toy_llama())
    layout, logged = chosen(model, adapter=Nothing(model))
    assert not layout.packed
    assert logged == [
        "examples are padded instead of packed: with the model's own attention, the model raises NotImplementedError: "
        "no kernel for restarting positions"
    ]


class Broken(Nothing):
    """An adapter with a bug that only packed routes reach."""

    def route(self, labels: torch.Tensor, examples: torch.Tensor | None = None) -> AbstractContextManager[None]:
        if labels.dim() == 2:
            raise IndexError("a bug of this adapter")
        return nullcontext()


def test_a_bug_of_an_adapter_is_raised_and_not_taken_for_a_model_that_needs_padding(
    toy_llama: Callable[..., Any],
) -> None:
    model = toy_llama()
    with pytest.raises(IndexError, match="a bug of this adapter"):
        chosen(model, adapter=Broken(model))


def test_a_device_that_is_out_of_memory_does_not_mean_that_a_model_needs_padding(
    toy_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_llama()
    assert list(iter_linear(model))  # found before the memory is full

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(type(model), "forward", forward_like(type(model).forward, full))
    with pytest.raises(TrainingError, match=r"out of memory.*20 tokens.*smaller model"):
        chosen(model)


def forward_like(forward: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    """``other`` with the signature of ``forward``, which the choice of a layout inspects."""
    return functools.wraps(forward)(other)


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
    # Absolute positions that restart in each sequence are those that the sequence would have alone.
    assert chosen(gpt2.eval().requires_grad_(False), adapter=Nothing(gpt2), max_length=32)[0].packed
    assert not chosen(toy_llama(), packing="off")[0].packed


def test_a_model_with_a_mask_of_a_fixed_size_is_packed_only_up_to_its_context() -> None:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    kinds = [[["global", "local"], 1]]
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "window_size": 6, "max_position_embeddings": 256}
    model = GPTNeoForCausalLM(GPTNeoConfig(vocab_size=97, attention_types=kinds, **sizes)).eval().requires_grad_(False)
    adapter = Nothing(model)
    assert chosen(model, adapter=adapter, micro_tokens=256)[0].packed
    layout, lines = chosen(model, adapter=adapter, micro_tokens=400)
    assert not layout.packed
    assert "with train.micro_tokens=400, more than the model's context of 256 tokens" in lines[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 60))
def test_every_sequence_is_in_one_micro_batch_that_has_room_for_it(lengths: list[int], capacity: int) -> None:
    for found, size in ((bins(lengths, capacity), sum), (groups(lengths, capacity), lambda x: len(x) * max(x))):
        assert sorted(i for part in found for i in part) == list(range(len(lengths)))
        for part in found:
            assert len(part) == 1 or size([lengths[i] for i in part]) <= capacity
    # First fit leaves no two micro-batches that would fit into one.
    rooms = sorted(sum(lengths[i] for i in part) for part in bins(lengths, capacity))
    assert len(rooms) < 2 or rooms[0] + rooms[1] > capacity


def benchmark_lengths(n: int, seed: int) -> list[int]:
    """Lengths of sequences as PromptCBLUE's are spread: log-normal, 5 to 95 % quantiles about 60 to 900 tokens."""
    draw = np.random.default_rng(seed)
    return [int(x) for x in np.clip(np.exp(draw.normal(math.log(160), 0.85, n)), 20, 1024)]


def test_at_most_three_percent_of_a_packed_row_is_empty() -> None:
    empty = total = 0
    for step in range(50):
        lengths = benchmark_lengths(64, step)
        parts = bins(lengths, 4096)
        filled = [sum(lengths[i] for i in part) for part in parts]
        # on a GPU sequences are filled up to a multiple of 128; all but the step's last row could hold 4096
        empty += sum(-used % 128 for used in filled) + sum(4096 - used - -used % 128 for used in filled[:-1])
        total += sum(filled)
    assert empty / (total + empty) < 0.03
