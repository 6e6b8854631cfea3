"""Texts are those of transformers' own greedy search, whatever shares a batch and however an adapter is applied."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import wraps
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.data.encoding import Encoded
from harness.errors import ModelError, NotFoldable
from harness.generation.cache import admits_later
from harness.generation.decoding import _LOOK, decode, log_likelihoods
from harness.generation.generator import Choice, Generated, Generator, Request, plan
from harness.models.loading import LoadedModel, decoder_start_token, load_model
from harness.registry import model_folder
from harness.training.batch import weigh
from harness.training.packing import Layout
from methods.cgc_lora import CGCLoRA
from methods.no_finetune import NoFinetune

pytestmark = pytest.mark.numeric

EOS = 5
VOCABULARY = 23
MARGIN = 1e-4  # between the logits of the two likeliest tokens: rounding is far below it, in float32 too
TASKS = ("add", "copy", "sort")


def loaded(model: Any, dtype: torch.dtype = torch.float64) -> LoadedModel:
    """A toy as if it had been loaded. Larger weights make its texts differ from row to row.

    Equal bits are promised for equal shapes only. Texts of different batches are compared in float64, where rounding
    is far below the gap between the two likeliest tokens (``reference`` checks the gap).
    """
    model = model.to(dtype).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6)
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = 0
    return LoadedModel(
        model=model,
        tokenizer=SimpleNamespace(eos_token_id=EOS),
        device=torch.device("cpu"),
        dtype=dtype,
        n_parameters=1,
        max_context=None if model.config.is_encoder_decoder else 256,
        encoder_decoder=bool(model.config.is_encoder_decoder),
    )


def toy(kind: str) -> LoadedModel:
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        BloomConfig,
        BloomForCausalLM,
        GPTNeoConfig,
        GPTNeoForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(0)
    if kind == "no positions":
        config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
        return loaded(BloomForCausalLM(config), torch.float32)  # in float64 transformers gives NaN for padded rows
    if kind == "local columns":
        kinds = [[["global", "local"], 1]]
        small = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 6, "max_position_embeddings": 64}
        return loaded(GPTNeoForCausalLM(GPTNeoConfig(vocab_size=VOCABULARY, attention_types=kinds, **small)))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "sliding window":
        sizes["num_key_value_heads"] = 2
        return loaded(MistralForCausalLM(MistralConfig(vocab_size=VOCABULARY, sliding_window=6, **sizes)))
    if kind == "another start":
        sides = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
        sides |= {f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")}
        tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": EOS, "forced_eos_token_id": None}
        config = BartConfig(d_model=32, max_position_embeddings=64, **sides, **tokens, decoder_start_token_id=2)
        config.vocab_size = VOCABULARY
        return loaded(BartForConditionalGeneration(config))
    config = T5Config(vocab_size=VOCABULARY, d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4)
    config.decoder_start_token_id = 3
    return loaded(T5ForConditionalGeneration(config))


@pytest.fixture
def llama(toy_llama: Callable[..., Any]) -> LoadedModel:
    return loaded(toy_llama(vocab_size=VOCABULARY))


def toy_requests(n: int = 32, routes: int = 1) -> list[Request]:
    chance = random.Random(1)
    return [
        Request(
            id=f"row {i}",
            route=i % routes,
            prompt=[chance.randrange(6, VOCABULARY) for _ in range(chance.randrange(1, 20))],
            limit=chance.randrange(1, 24),
        )
        for i in range(n)
    ]


def reference(model: Any, request: Request) -> list[int]:
    """transformers' own greedy text of one row, eos included; no token of it is a close decision."""
    ids = torch.tensor([list(request.prompt)])
    told = {"attention_mask": torch.ones_like(ids), "max_new_tokens": request.limit, "do_sample": False}
    found = model.generate(ids, **told, output_logits=True, return_dict_in_generate=True)
    likeliest = torch.cat(found.logits).topk(2).values
    assert (likeliest[:, 0] - likeliest[:, 1]).min() > MARGIN
    out = found.sequences[0].tolist()
    return list(out[1:] if model.config.is_encoder_decoder else out[len(request.prompt) :])


def always(rows: Tensor) -> Any:
    return nullcontext()


def cgc(model: Any) -> Any:
    """An adapter of three tasks that changes every text: its B is random."""
    adapter = CGCLoRA(n_common=2, n_specific=1, expert_rank=2).attach(model, TASKS, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapter.trainable().items():
            if ".B" in name:
                parameter.normal_(0, 0.5)
    return adapter


def run(generator: Generator, requests: Sequence[Request]) -> dict[str, tuple[int, ...]]:
    texts: dict[str, tuple[int, ...]] = {}
    generator.run(requests, lambda batch: texts.update({g.id: g.tokens for g in batch}))
    return texts


KINDS = ["full attention", "sliding window", "encoder-decoder", "another start", "no positions", "local columns"]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_those_of_transformers_for_every_batch_size(kind: str, llama: LoadedModel) -> None:
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
        assert decode(model, prompts, limits, always, slots=size, ended=told.append) == expected
        assert sum(told) == len(requests)


def test_the_next_row_takes_the_slot_of_one_that_has_ended(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_in_bfloat16_no_forwards_shape_depends_on_when_rows_end(
    toy_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(toy_llama(vocab_size=VOCABULARY), torch.bfloat16)
    requests = toy_requests()
    prompts, limits = [r.prompt for r in requests], [r.limit for r in requests]
    shapes = []
    for eos in (EOS, 7):  # another token ends the texts: other rows end at other times
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


def forwards(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Rows, tokens of each and columns that they may look at, of every forward to come."""
    seen: list[tuple[int, int, int]] = []
    forward = type(loaded.model).forward

    @wraps(forward)
    def noted(self: Any, *args: Any, **arguments: Any) -> Any:
        mask = arguments["attention_mask"]
        ids = arguments["input_ids"]
        seen.append((*ids.shape, ids.shape[1] if mask is None else mask.shape[1]))
        return forward(self, *args, **arguments)

    monkeypatch.setattr(type(loaded.model), "forward", noted)
    return seen


@pytest.mark.parametrize(("rope", "later"), [("default", True), ("linear", True), ("dynamic", False)])
def test_rows_join_others_only_where_positions_are_their_own(
    toy_llama: Callable[..., Any], rope: str, later: bool
) -> None:
    parameters = {"rope_type": rope, "rope_theta": 10000.0, "factor": 2.0}
    model = loaded(toy_llama(vocab_size=VOCABULARY, rope_parameters=parameters))
    assert admits_later(model) is later
    assert not admits_later(toy("local columns"))


def test_many_short_prompts_begin_in_one_pass_and_long_ones_in_several(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = toy_requests(16)
    prompts, limits = [r.prompt for r in requests], [r.limit for r in requests]
    expected = [reference(llama.model, request) for request in requests]
    for small, first in ((1024, 16), (3 * max(map(len, prompts)), 3), (1, 2)):
        monkeypatch.setattr("harness.generation.decoding._SMALL", small)
        seen = forwards(llama, monkeypatch)
        assert decode(llama, prompts, limits, always) == expected
        read = [rows for rows, tokens, _ in seen if tokens > 1]
        assert read[0] == first
        assert sum(read) == 16
        monkeypatch.undo()


@pytest.mark.parametrize("kind", KINDS)
def test_looking_at_ended_rows_now_and_then_changes_no_text(
    kind: str, llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama if kind == "full attention" else toy(kind)
    requests = toy_requests(16)
    prompts, limits = [r.prompt for r in requests], [r.limit for r in requests]
    expected = [reference(model.model, request) for request in requests]
    for look, size in ((5, None), (8, 4)):
        monkeypatch.setitem(_LOOK, "cpu", look)
        assert decode(model, prompts, limits, always, slots=size) == expected
        assert decode(model, prompts, limits, always, slots=size, together=True) == expected


def test_a_row_that_breaks_leaves_nothing_to_the_next_one_in_its_slot(llama: LoadedModel) -> None:
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


def test_a_batch_leaves_no_cache_behind(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    import harness.generation.decoding as module

    made: list[weakref.ref[Any]] = []
    new_state = module.new_state

    def noted(*args: Any) -> Any:
        state = new_state(*args)
        made.append(weakref.ref(state))
        return state

    monkeypatch.setattr(module, "new_state", noted)
    gc.disable()
    try:
        decode(llama, [[7, 8], [9]], [5, 5], always)
        assert [state() for state in made] == [None]
    finally:
        gc.enable()


def test_an_adapter_that_reads_prompts_reads_each_once(llama: LoadedModel) -> None:
    requests = toy_requests(24, routes=3)
    choosy = Spy(cgc(llama.model), choose=lambda prompt: len(prompt) % 3)
    bfloat = replace(llama, dtype=torch.bfloat16)  # as far as the plan goes: no row leaves before the others
    Generator(bfloat, choosy, TASKS, folds=False, batch_tokens=300, reads=True).run(requests, lambda batch: None)
    assert sum(choosy.read_rows) == len(requests)
    mixed = Spy(choosy.adapter)  # tasks share batches below float32: no row joins there either
    Generator(bfloat, mixed, TASKS, folds=False, batch_tokens=300).run(requests, lambda batch: None)
    assert sum(mixed.routes) == len(requests)


@pytest.mark.gpu
def test_a_gpu_gives_the_texts_of_the_cpu(toy_llama: Callable[..., Any]) -> None:
    requests = toy_requests(24, routes=3)
    texts = []
    for device in ("cpu", "cuda"):
        model = loaded(toy_llama(vocab_size=VOCABULARY))
        model = replace(model, model=model.model.to(device), device=torch.device(device))
        texts.append(run(Generator(model, cgc(model.model), TASKS, folds=True, batch_tokens=400), requests))
    assert texts[0] == texts[1]


def test_the_tiny_models_texts_are_those_of_transformers() -> None:
    folder = model_folder("tiny")
    if folder is None or not folder.is_dir():
        pytest.skip("the sample model has not been made")
    tiny = load_model("tiny", "fp32", "cpu")
    tiny = replace(tiny, model=tiny.model.double(), dtype=torch.float64)
    texts = [
        "1、",
        "请写一个句子：",
        "肺炎患者咳嗽，",
        "下面是",
        "问：你好。答：",
        "高血压",
        "今天",
        "患者男，五十岁，",
    ]
    requests = [
        Request(id=text, route=0, prompt=tiny.tokenizer(text * (1 + i % 3))["input_ids"], limit=12 + i)
        for i, text in enumerate(texts)
    ]
    adapter = NoFinetune().attach(tiny.model, TASKS, seed=0)
    found = run(Generator(tiny, adapter, TASKS, folds=False, batch_tokens=10_000), requests)
    for request in requests:
        expected = reference(tiny.model, request)
        assert list(found[request.id]) == (expected[:-1] if expected[-1] in tiny.eos_ids else expected)


def test_every_eos_of_the_generation_config_ends_a_text(llama: LoadedModel) -> None:
    request = max(toy_requests(), key=lambda r: len(reference(llama.model, r)))
    text = reference(llama.model, request)
    llama.model.generation_config.eos_token_id = [EOS, text[5]]
    first = text.index(text[5])
    assert decode(llama, [request.prompt], [request.limit], always)[0] == text[: first + 1]
    assert first + 1 < len(text)


def test_a_text_is_cut_where_the_limit_comes_before_eos(llama: LoadedModel) -> None:
    adapter = NoFinetune().attach(llama.model, TASKS, seed=0)
    generated: list[Generated] = []
    requests = toy_requests()
    Generator(llama, adapter, TASKS, folds=False, batch_tokens=300).run(requests, generated.extend)
    expected = {r.id: reference(llama.model, r) for r in requests}
    for row in generated:
        full = expected[row.id]
        assert row.cut == (full[-1] != EOS)
        assert list(row.tokens) == (full if row.cut else full[:-1])
    assert {row.cut for row in generated} == {True, False}


def test_folded_merged_and_routed_give_equal_texts_that_differ_from_the_base_models(llama: LoadedModel) -> None:
    requests = toy_requests(24, routes=3)
    base = {r.id: reference(llama.model, r) for r in requests}
    before = {name: tensor.clone() for name, tensor in llama.model.state_dict().items()}
    adapter = cgc(llama.model)
    routed = run(Generator(llama, adapter, TASKS, folds=False, batch_tokens=400), requests)
    merged = run(Generator(llama, adapter, TASKS, folds=True, batch_tokens=400), requests)
    assert routed == merged
    assert sum(list(routed[r.id]) != base[r.id][: len(routed[r.id])] for r in requests) > 12
    adapter.detach()
    assert all(torch.equal(before[name], tensor) for name, tensor in llama.model.state_dict().items())


def test_merged_where_weights_are_float32_or_better_and_beside_the_weights_elsewhere(
    toy_llama: Callable[..., Any],
) -> None:
    seen = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = loaded(toy_llama(vocab_size=VOCABULARY), dtype)
        spy = Spy(cgc(model.model))
        stats = Generator(model, spy, TASKS, folds=True, batch_tokens=400).run(toy_requests(9, 3), lambda batch: None)
        seen.append(spy.merges)
        assert stats.switches == 3
        assert stats.tokens > 9
    assert seen == [[True] * 3, [True] * 3, [False] * 3]


def test_ended_rows_leave_a_float32_batch_and_stay_in_a_bfloat16_one(toy_llama: Callable[..., Any]) -> None:
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = loaded(toy_llama(vocab_size=VOCABULARY), dtype)
        spy = Spy(NoFinetune().attach(model.model, TASKS, seed=0))
        Generator(model, spy, TASKS, folds=False, batch_tokens=10_000).run(toy_requests(), lambda batch: None)
        sizes[dtype] = spy.routes
    assert sizes[torch.bfloat16] == [32]
    left = sizes[torch.float32]
    assert left[0] >= 24
    assert left == sorted(left, reverse=True)
    assert 1 < len(left) < 15


def test_a_task_that_does_not_fold_is_routed_and_named(llama: LoadedModel) -> None:
    requests = toy_requests(24, routes=3)
    adapter = cgc(llama.model)
    expected = run(Generator(llama, adapter, TASKS, folds=False, batch_tokens=400), requests)
    stubborn = Spy(adapter, unfoldable={"copy"})
    texts: dict[str, tuple[int, ...]] = {}
    stats = Generator(llama, stubborn, TASKS, folds=True, batch_tokens=400).run(
        requests, lambda batch: texts.update({g.id: g.tokens for g in batch})
    )
    assert stats.unfolded == ("copy",)
    assert stats.switches == 2
    assert stubborn.routes
    assert texts == expected


def test_an_adapter_that_chooses_by_the_prompt_is_folded_for_its_choice(llama: LoadedModel) -> None:
    requests = toy_requests(24, routes=3)
    adapter = cgc(llama.model)
    chosen = [Request(id=r.id, route=len(r.prompt) % 3, prompt=r.prompt, limit=r.limit) for r in requests]
    expected = run(Generator(llama, adapter, TASKS, folds=True, batch_tokens=400), chosen)
    choosy = Spy(adapter, choose=lambda prompt: len(prompt) % 3)
    generated: list[Generated] = []
    for folds in (True, False):
        generated.clear()
        generator = Generator(llama, choosy, TASKS, folds=folds, batch_tokens=400, reads=True)
        generator.run(requests, generated.extend)
        assert {g.id: g.tokens for g in generated} == expected
        assert {(g.route, g.id) for g in generated} == {(r.route, r.id) for r in requests}
    assert choosy.read_rows == choosy.routes


def test_too_little_memory_halves_the_batch_and_is_counted(llama: LoadedModel) -> None:
    requests = toy_requests(8)
    adapter = NoFinetune().attach(llama.model, TASKS, seed=0)
    expected = run(Generator(llama, adapter, TASKS, folds=False, batch_tokens=10_000), requests)
    small = Spy(adapter, memory=3)
    batches: list[Sequence[Generated]] = []
    stats = Generator(llama, small, TASKS, folds=False, batch_tokens=10_000).run(requests, batches.append)
    assert stats.halved == 2  # 8 rows at once, then 4, then 2
    assert len(batches) == 1
    assert {g.id: g.tokens for g in batches[0]} == expected
    with pytest.raises(ModelError, match="one prompt of"):
        Generator(llama, Spy(adapter, memory=0), TASKS, folds=False, batch_tokens=64).run(requests, batches.append)


def test_batches_that_are_finished_are_left_out_and_others_made_whole(llama: LoadedModel) -> None:
    requests = toy_requests(16)
    adapter = NoFinetune().attach(llama.model, TASKS, seed=0)
    generator = Generator(llama, adapter, TASKS, folds=False, batch_tokens=30)
    whole = [{r.id for r in batch} for batch in plan(requests, 4 * 30)]
    assert len(whole) > 3
    finished = {(0, i) for i in whole[0] | whole[1]} | {(0, min(whole[2]))}
    seen: list[set[str]] = []
    generator.run(requests, lambda batch: seen.append({g.id for g in batch}), finished)
    assert seen == whole[2:]


def test_an_interrupted_run_leaves_the_weights_as_they_were(llama: LoadedModel) -> None:
    before = {name: tensor.clone() for name, tensor in llama.model.state_dict().items()}
    adapter = cgc(llama.model)

    def stop(batch: Sequence[Generated]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as held:  # the traceback keeps every frame of the run alive
        Generator(llama, adapter, TASKS, folds=True, batch_tokens=100).run(toy_requests(6, 3), stop)
    with adapter.off():  # another state can be entered at once: the merged one has been left
        adapter.detach()
    assert held.value is not None
    assert all(torch.equal(before[name], tensor) for name, tensor in llama.model.state_dict().items())


@pytest.mark.parametrize(("kind", "start"), [("encoder-decoder", 3), ("another start", 2)])
def test_a_decoder_starts_from_its_own_token_in_training_scoring_and_generation(
    kind: str, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy(kind)
    assert decoder_start_token(model) == start
    rows = [Encoded(task="add", prompt=(7, 8), target=(9, 10), cut=False)]
    batch = Layout(packed=False).collate(weigh(rows, "token", TASKS), model)
    assert batch.inputs["decoder_input_ids"].tolist() == [[start, 9]]
    read: list[list[list[int]]] = []
    forward = type(model.model).forward

    @wraps(forward)
    def noted(self: Any, *args: Any, **arguments: Any) -> Any:
        read.append(arguments["decoder_input_ids"].tolist())
        return forward(self, *args, **arguments)

    monkeypatch.setattr(type(model.model), "forward", noted)
    decode(model, [[7, 8]], [2], always)
    log_likelihoods(model, [[7, 8]], [[9, 10]], always)
    assert read[0] == [[start]]
    assert read[-1] == [[start, 9]]


@pytest.mark.parametrize("kind", ["full attention", "encoder-decoder"])
def test_likelihoods_are_sums_over_tokens_read_one_by_one(kind: str, llama: LoadedModel) -> None:
    model = llama if kind == "full attention" else toy(kind)
    prompts = [r.prompt for r in toy_requests(6)]
    continuations = [[7], [8, 9, 10], [11, EOS], [6, 6], [12, 13, 14, 15], [EOS]]
    sums = log_likelihoods(model, prompts, continuations, always)
    for prompt, continuation, found in zip(prompts, continuations, sums, strict=True):
        expected = 0.0
        for i, token in enumerate(continuation):
            known = continuation[:i]
            if model.encoder_decoder:
                inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[3, *known]])}
            else:
                inputs = {"input_ids": torch.tensor([[*prompt, *known]])}
            expected += torch.log_softmax(model.model(**inputs).logits[0, -1], -1)[token].item()
        assert found == pytest.approx(expected, rel=1e-4)


def test_likelihoods_go_through_the_adapter(llama: LoadedModel) -> None:
    adapter = cgc(llama.model)
    choices = [
        Choice(id=f"{i} {c}", route=i % 3, prompt=r.prompt, continuation=[c, EOS])
        for i, r in enumerate(toy_requests(6))
        for c in (7, 8)
    ]
    folded = Generator(llama, adapter, TASKS, folds=True, batch_tokens=100).log_likelihoods(choices)
    routed = Generator(llama, adapter, TASKS, folds=False, batch_tokens=1000).log_likelihoods(choices)
    assert folded == pytest.approx(routed, rel=1e-3)
    with adapter.off():
        base = log_likelihoods(llama, [c.prompt for c in choices], [c.continuation for c in choices], always)
    assert list(folded) != list(base)
    assert max(abs(folded[c.route, c.id] - b) for c, b in zip(choices, base, strict=True)) > 0.1


@pytest.mark.parametrize(
    ("prompt", "limit", "words"), [([], 3, "at least 1"), ([7], 0, "at least 1"), ([7] * 250, 9, "256")]
)
def test_a_row_that_cannot_be_generated_is_named(prompt: list[int], limit: int, words: str, llama: LoadedModel) -> None:
    generator = Generator(llama, NoFinetune().attach(llama.model, TASKS, seed=0), TASKS, folds=False, batch_tokens=99)
    with pytest.raises(ModelError, match=rf"the row: .*{words}"):
        generator.run([Request(id="the row", route=0, prompt=prompt, limit=limit)], lambda batch: None)


rows = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2)), max_size=40)


@given(rows, st.integers(16, 300), st.randoms(use_true_random=False))
def test_a_plan_holds_each_row_once_within_the_budget_in_any_order(
    sizes: list[tuple[int, int, int]], budget: int, chance: random.Random
) -> None:
    requests = [Request(id=str(i), route=r, prompt=[7] * n, limit=m) for i, (n, m, r) in enumerate(sizes)]
    batches = plan(requests, budget)
    assert sorted(r.id for batch in batches for r in batch) == sorted(r.id for r in requests)
    for batch in batches:
        tokens = len(batch) * (max(len(r.prompt) for r in batch) + max(r.limit for r in batch))
        assert tokens <= budget or len(batch) == 1
    chance.shuffle(requests)
    assert plan(requests, budget) == batches


class Spy:
    """An adapter with some of its answers changed, that notes how it is used."""

    def __init__(self, adapter: Any, *, unfoldable: Sequence[str] = (), choose: Any = None, memory: int = 99) -> None:
        self.adapter, self.unfoldable, self.choose, self.memory = adapter, unfoldable, choose, memory
        self.merges: list[bool] = []
        self.routes: list[int] = []
        self.read_rows: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.adapter, name)

    def fold(self, task: str) -> Any:
        if task in self.unfoldable:
            raise NotFoldable(task)
        return self.adapter.fold(task)

    def apply(self, factors: Mapping[str, Any], *, merge: bool) -> Any:
        self.merges.append(merge)
        return self.adapter.apply(factors, merge=merge)

    def assign(self, prompts: Sequence[Tensor]) -> list[int] | None:
        return [self.choose(p) for p in prompts] if self.choose else None

    def read(self, prompts: Sequence[Tensor], owner: Tensor) -> None:
        assert owner.tolist() == list(range(len(prompts)))
        self.read_rows.append(len(prompts))

    @contextmanager
    def route(self, labels: Tensor) -> Iterator[None]:
        if len(labels) > self.memory:
            raise torch.OutOfMemoryError("toy")
        self.routes.append(len(labels))
        with self.adapter.route(labels):
            yield
