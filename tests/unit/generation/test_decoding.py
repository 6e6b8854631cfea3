"""Decoded tokens are those of transformers' own greedy search, whatever shares a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest
import torch
from toy_generation import EOS, KINDS, TASKS, VOCABULARY, always, forwards, loaded, reference, toy, toy_requests

from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.generation.cache import supports_refill
from harness.generation.decoding import Schedule, decode
from harness.generation.graph import Work
from harness.generation.likelihood import likelihoods
from harness.models.loading import LoadedModel, decoder_start_token
from harness.training.batch import weigh
from harness.training.packing import Layout

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_transformers_for_every_batch_size(kind: str, llama: LoadedModel) -> None:
    model = llama if kind == "full attention" else toy(kind)
    requests = toy_requests()
    expected = [reference(model.model, request) for request in requests]
    assert len({tuple(t) for t in expected}) > 15
    for size in (1, 4, 32):
        texts = []
        for start in range(0, len(requests), size):
            batch = requests[start : start + size]
            texts += decode(model, [r.prompt for r in batch], [r.limit for r in batch], always)
        assert texts == expected
        told: list[int] = []
        prompts, limits = [r.prompt for r in requests], [r.limit for r in requests]
        assert decode(model, prompts, limits, always, slots=size, on_finished=told.append) == expected
        assert sum(told) == len(requests)


def test_the_next_sequence_takes_the_slot_of_one_that_has_finished(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = toy_requests()
    prompts, limits = [r.prompt for r in requests], [r.limit for r in requests]
    expected = [reference(llama.model, request) for request in requests]
    steps = forwards(llama, monkeypatch)
    assert decode(llama, prompts, limits, always, slots=4) == expected
    one_token = [shape for shape in steps if shape[1] == 1]
    tokens = sum(map(len, expected)) - len(expected)  # the first of each comes from its prompt
    longest = max(map(len, expected))
    assert len(one_token) <= tokens / 4 + longest  # every slot is in use until no row waits
    all_begin_together = sum(max(map(len, expected[i : i + 4])) - 1 for i in range(0, len(expected), 4))
    assert len(one_token) < 0.8 * all_begin_together


def test_in_bfloat16_no_forwards_shape_depends_on_when_sequences_finish(
    toy_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(toy_llama(vocab_size=VOCABULARY), torch.bfloat16)
    requests = toy_requests()
    prompts, limits = [r.prompt for r in requests], [r.limit for r in requests]
    shapes = []
    for eos in (EOS, 7):  # another token ends the texts: other sequences end at other times
        model.model.generation_config.eos_token_id = eos
        shapes.append(forwards(model, monkeypatch))
        decode(model, prompts, limits, always, slots=8)
        monkeypatch.undo()
    assert len(shapes[0]) != len(shapes[1])
    width = max(map(len, prompts)) + max(limits)
    for seen in shapes:
        assert {s for s in seen if s[1] == 1 and s[0] == 8} == {(8, 1, width)}
        assert all(s[0] in (1, 8) for s in seen)
    assert [s for s in shapes[0] if s[0] == 1] == [s for s in shapes[1] if s[0] == 1]  # prompts, one by one
    assert len([s for s in shapes[0] if s[0] == 1]) == len(requests) - 8  # but the first eight, in one pass


@pytest.mark.parametrize(("rope", "later"), [("default", True), ("linear", True), ("dynamic", False)])
def test_slots_are_refilled_only_where_positions_are_a_sequences_own(
    toy_llama: Callable[..., Any], rope: str, later: bool
) -> None:
    parameters = {"rope_type": rope, "rope_theta": 10000.0, "factor": 2.0}
    model = loaded(toy_llama(vocab_size=VOCABULARY, rope_parameters=parameters))
    assert supports_refill(model) is later
    assert not supports_refill(toy("local columns"))


def test_many_short_prompts_begin_in_one_pass_and_long_ones_in_several(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = toy_requests(16)
    prompts, limits = [r.prompt for r in requests], [r.limit for r in requests]
    expected = [reference(llama.model, request) for request in requests]
    for prefill_tokens, first in ((1024, 16), (3 * max(map(len, prompts)), 3), (1, 2)):
        schedule = Schedule(prefill_tokens=prefill_tokens)
        with monkeypatch.context() as patch:
            passes = forwards(llama, patch)
            assert decode(llama, prompts, limits, always, schedule=schedule) == expected
        read = [rows for rows, tokens, _ in passes if tokens > 1]
        assert read[0] == first
        assert sum(read) == 16


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_checking_for_finished_sequences_now_and_then_changes_no_token(kind: str, llama: LoadedModel) -> None:
    model = llama if kind == "full attention" else toy(kind)
    requests = toy_requests(16)
    prompts, limits = [r.prompt for r in requests], [r.limit for r in requests]
    expected = [reference(model.model, request) for request in requests]
    for steps, size in ((5, None), (8, 4)):
        schedule = Schedule(steps_per_check=steps)
        assert decode(model, prompts, limits, always, slots=size, schedule=schedule) == expected
        assert decode(model, prompts, limits, always, slots=size, together=True, schedule=schedule) == expected


def test_a_sequence_with_nan_leaves_nothing_to_the_next_one_in_its_slot(llama: LoadedModel) -> None:
    requests = toy_requests(12)
    broken = 6  # a token whose embedding is no number
    prompts = [[broken] * 18, *([t if t != broken else 7 for t in r.prompt] for r in requests)]
    limits = [9, *(r.limit for r in requests)]
    expected = [reference(llama.model, replace(r, prompt=p)) for r, p in zip(requests, prompts[1:], strict=True)]
    llama.model.get_input_embeddings().weight.data[broken] = float("nan")
    assert not llama.model.lm_head.weight.isnan().any()
    found = decode(llama, prompts, limits, always, slots=2)
    clean = [i for i, text in enumerate(expected) if broken not in text]
    assert len(clean) > 4
    assert [found[1 + i] for i in clean] == [expected[i] for i in clean]


@pytest.mark.parametrize("recorded", [False, True])
def test_a_batch_leaves_no_cache_behind(
    toy_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    import gc
    import weakref

    import harness.generation.decoding as module

    model = loaded(toy_llama(vocab_size=VOCABULARY), torch.bfloat16 if recorded else torch.float64)
    caches: list[weakref.ref[Any]] = []
    records: list[str] = []

    def record(work: Work) -> Work:
        records.append("recorded")
        return work

    new_cache = module.new_cache

    def noted(*args: Any) -> Any:
        cache = new_cache(*args)
        caches.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(module, "new_cache", noted)
    gc.disable()
    try:
        decode(model, [[7, 8], [9]], [5, 5], always, schedule=Schedule(record=record if recorded else None))
        assert [cache() for cache in caches] == [None]
        assert bool(records) is recorded
    finally:
        gc.enable()


def test_every_eos_of_the_generation_config_ends_a_prediction(llama: LoadedModel) -> None:
    request = max(toy_requests(), key=lambda r: len(reference(llama.model, r)))
    text = reference(llama.model, request)
    llama.model.generation_config.eos_token_id = [EOS, text[5]]
    first = text.index(text[5])
    assert decode(llama, [request.prompt], [request.limit], always)[0] == text[: first + 1]
    assert first + 1 < len(text)


@pytest.mark.parametrize(("kind", "start"), [("encoder-decoder", 3), ("another start", 2)])
def test_a_decoder_starts_from_its_own_token_in_training_scoring_and_generation(
    kind: str, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy(kind)
    assert decoder_start_token(model) == start
    rows = [Encoded(task="add", prompt=(7, 8), target=(9, 10), truncated=False)]
    batch = Layout(packed=False).collate(weigh(rows, "token", Routes(TASKS)), model)
    assert batch.inputs["decoder_input_ids"][:, :2].tolist() == [[start, 9]]
    read: list[list[list[int]]] = []
    forward = type(model.model).forward

    @wraps(forward)
    def noted(self: Any, *args: Any, **arguments: Any) -> Any:
        read.append(arguments["decoder_input_ids"].tolist())
        return forward(self, *args, **arguments)

    monkeypatch.setattr(type(model.model), "forward", noted)
    decode(model, [[7, 8]], [2], always)
    likelihoods(model, [[7, 8]], [[9, 10]], always)
    assert read[0] == [[start]]
    assert read[-1] == [[start, 9]]
