"""Predictions do not depend on how an adapter is applied, what shares a batch, or interruptions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_generation import EOS, ROUTES, TASKS, VOCABULARY, Spy, cgc, loaded, reference, run, toy_requests

from harness.errors import HarnessError, ModelError
from harness.generation.generator import Generator, plan_batches
from harness.generation.predictions import PredictionKey
from harness.generation.requests import Generated, GenerationRequest
from harness.method import BaseRouting
from harness.models.loading import LoadedModel, load_model
from harness.registry import model_folder
from harness.runtime.distributed import ProcessGroup
from methods.no_finetune import NoFinetune

pytestmark = pytest.mark.numeric


def test_an_adapter_that_reads_prompts_reads_each_once(llama: LoadedModel) -> None:
    requests = toy_requests(24, routes=3)
    choosy = Spy(cgc(llama.model), choose=lambda prompt: len(prompt) % 3)
    bfloat = replace(llama, dtype=torch.bfloat16)  # as far as the plan goes: no row leaves before the others
    Generator(bfloat, choosy, ROUTES, folds=False, batch_tokens=300, reads=True).run(requests, lambda batch: None)
    assert sum(choosy.read_rows) == len(requests)
    mixed = Spy(choosy.adapter)  # tasks share batches below float32: no row joins there either
    Generator(bfloat, mixed, ROUTES, folds=False, batch_tokens=300).run(requests, lambda batch: None)
    assert sum(mixed.routes) == len(requests)


@pytest.mark.parametrize("folds", [True, False])
def test_ranks_divide_the_batches_of_one_process(llama: LoadedModel, folds: bool) -> None:
    """In the same batches, so that not a bit of a prediction depends on the number of ranks."""
    adapter, requests = cgc(llama.model), toy_requests(24, routes=3)
    finished = {PredictionKey(r.task, r.id) for r in requests[:5]}

    def batches(rank: int, world_size: int) -> list[list[Generated]]:
        found: list[list[Generated]] = []
        ranks = ProcessGroup(rank=rank, world_size=world_size)
        generator = Generator(llama, adapter, ROUTES, folds=folds, batch_tokens=40, processes=ranks)
        generator.run(requests, lambda batch: found.append(list(batch)), finished=finished)
        return found

    alone, ranks = batches(0, 1), [batches(rank, 3) for rank in range(3)]
    assert {len(found) for found in ranks} <= {len(alone) // 3, len(alone) // 3 + 1}
    keys = [{tuple((g.task, g.id) for g in batch) for batch in found} for found in (alone, *ranks)]
    assert keys[0] == set().union(*keys[1:])
    assert sum(map(len, ranks)) == len(alone)
    by_key = {g.key: g for batch in alone for g in batch}
    assert all(g == by_key[g.key] for found in ranks for batch in found for g in batch)


@pytest.mark.gpu
def test_a_gpu_gives_the_texts_of_the_cpu(toy_llama: Callable[..., Any]) -> None:
    requests = toy_requests(24, routes=3)
    texts = []
    for device in ("cpu", "cuda"):
        model = loaded(toy_llama(vocab_size=VOCABULARY))
        model = replace(model, model=model.model.to(device), device=torch.device(device))
        texts.append(run(Generator(model, cgc(model.model), ROUTES, folds=True, batch_tokens=400), requests))
    assert texts[0] == texts[1]


def test_the_tiny_models_texts_are_those_of_transformers() -> None:
    folder = model_folder("tiny")
    if folder is None or not folder.is_dir():
        pytest.skip("the sample model has not been trained yet")
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
        GenerationRequest(id=text, task=TASKS[0], prompt=tiny.tokenizer(text * (1 + i % 3))["input_ids"], limit=12 + i)
        for i, text in enumerate(texts)
    ]
    adapter = NoFinetune().attach(tiny.model, TASKS, seed=0)
    found = run(Generator(tiny, adapter, ROUTES, folds=False, batch_tokens=10_000), requests)
    for request in requests:
        expected = reference(tiny.model, request)
        assert list(found[request.id]) == (expected[:-1] if expected[-1] in tiny.eos_ids else expected)


def test_a_text_is_cut_where_the_limit_comes_before_eos(llama: LoadedModel) -> None:
    adapter = NoFinetune().attach(llama.model, TASKS, seed=0)
    generated: list[Generated] = []
    requests = toy_requests()
    Generator(llama, adapter, ROUTES, folds=False, batch_tokens=300).run(requests, generated.extend)
    expected = {r.id: reference(llama.model, r) for r in requests}
    for row in generated:
        full = expected[row.id]
        assert row.truncated == (full[-1] != EOS)
        assert list(row.tokens) == (full if row.truncated else full[:-1])
    assert {row.truncated for row in generated} == {True, False}


def test_folded_merged_and_routed_give_equal_texts_that_differ_from_the_base_models(llama: LoadedModel) -> None:
    requests = toy_requests(24, routes=3)
    base = {r.id: reference(llama.model, r) for r in requests}
    before = {name: tensor.clone() for name, tensor in llama.model.state_dict().items()}
    adapter = cgc(llama.model)
    routed = run(Generator(llama, adapter, ROUTES, folds=False, batch_tokens=400), requests)
    merged = run(Generator(llama, adapter, ROUTES, folds=True, batch_tokens=400), requests)
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
        stats = Generator(model, spy, ROUTES, folds=True, batch_tokens=400).run(toy_requests(9, 3), lambda batch: None)
        seen.append(spy.merges)
        assert stats.switches == 3
        assert stats.tokens > 9
    assert seen == [[True] * 3, [True] * 3, [False] * 3]


def test_ended_rows_leave_a_float32_batch_and_stay_in_a_bfloat16_one(toy_llama: Callable[..., Any]) -> None:
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = loaded(toy_llama(vocab_size=VOCABULARY), dtype)
        spy = Spy(NoFinetune().attach(model.model, TASKS, seed=0))
        Generator(model, spy, ROUTES, folds=False, batch_tokens=10_000).run(toy_requests(), lambda batch: None)
        sizes[dtype] = spy.routes
    assert sizes[torch.bfloat16] == [32]
    left = sizes[torch.float32]
    assert left[0] >= 24
    assert left == sorted(left, reverse=True)
    assert 1 < len(left) < 15


def test_a_task_that_does_not_fold_is_routed_and_named(llama: LoadedModel) -> None:
    requests = toy_requests(24, routes=3)
    adapter = cgc(llama.model)
    expected = run(Generator(llama, adapter, ROUTES, folds=False, batch_tokens=400), requests)
    stubborn = Spy(adapter, unfoldable={"copy"})
    texts: dict[str, tuple[int, ...]] = {}
    stats = Generator(llama, stubborn, ROUTES, folds=True, batch_tokens=400).run(
        requests, lambda batch: texts.update({g.id: g.tokens for g in batch})
    )
    assert stats.unfolded == ("copy",)
    assert stats.switches == 2
    assert stubborn.routes
    assert texts == expected


def test_an_adapter_that_chooses_by_the_prompt_is_folded_for_its_choice(llama: LoadedModel) -> None:
    requests = toy_requests(24, routes=3)
    adapter = cgc(llama.model)
    chosen = [
        GenerationRequest(id=r.id, task=TASKS[len(r.prompt) % 3], prompt=r.prompt, limit=r.limit) for r in requests
    ]
    expected = run(Generator(llama, adapter, ROUTES, folds=True, batch_tokens=400), chosen)
    choosy = Spy(adapter, choose=lambda prompt: len(prompt) % 3)
    generated: list[Generated] = []
    for folds in (True, False):
        generated.clear()
        generator = Generator(llama, choosy, ROUTES, folds=folds, batch_tokens=400, reads=True)
        generator.run(requests, generated.extend)
        assert {g.id: g.tokens for g in generated} == expected
        assert {(g.task, g.id) for g in generated} == {(r.task, r.id) for r in requests}
    assert choosy.read_rows == choosy.routes


def test_too_little_memory_halves_the_batch_and_is_counted(llama: LoadedModel) -> None:
    requests = toy_requests(8)
    adapter = NoFinetune().attach(llama.model, TASKS, seed=0)
    expected = run(Generator(llama, adapter, ROUTES, folds=False, batch_tokens=10_000), requests)
    small = Spy(adapter, memory=3)
    batches: list[Sequence[Generated]] = []
    stats = Generator(llama, small, ROUTES, folds=False, batch_tokens=10_000).run(requests, batches.append)
    assert stats.halved == 2  # 8 rows at once, then 4, then 2
    assert len(batches) == 1
    assert {g.id: g.tokens for g in batches[0]} == expected
    with pytest.raises(ModelError, match="one prompt of"):
        Generator(llama, Spy(adapter, memory=0), ROUTES, folds=False, batch_tokens=64).run(requests, batches.append)


def test_batches_that_are_finished_are_left_out_and_others_made_whole(llama: LoadedModel) -> None:
    requests = toy_requests(16)
    adapter = NoFinetune().attach(llama.model, TASKS, seed=0)
    generator = Generator(llama, adapter, ROUTES, folds=False, batch_tokens=30)
    whole = [{r.id for r in batch} for batch in plan_batches(requests, 4 * 30, ROUTES)]
    assert len(whole) > 3
    finished = {PredictionKey(TASKS[0], i) for i in (*whole[0], *whole[1], min(whole[2]))}
    seen: list[set[str]] = []
    generator.run(requests, lambda batch: seen.append({g.id for g in batch}), finished)
    assert seen == whole[2:]


def test_an_interrupted_run_leaves_the_weights_as_they_were(llama: LoadedModel) -> None:
    before = {name: tensor.clone() for name, tensor in llama.model.state_dict().items()}
    adapter = cgc(llama.model)

    def stop(batch: Sequence[Generated]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as held:  # the traceback keeps every frame of the run alive
        Generator(llama, adapter, ROUTES, folds=True, batch_tokens=100).run(toy_requests(6, 3), stop)
    with adapter.off():  # another state can be entered at once: the merged one has been left
        adapter.detach()
    assert held.value is not None
    assert all(torch.equal(before[name], tensor) for name, tensor in llama.model.state_dict().items())


@pytest.mark.parametrize(
    ("prompt", "limit", "words"), [([], 3, "at least 1"), ([7], 0, "at least 1"), ([7] * 250, 9, "256")]
)
def test_a_row_that_cannot_be_generated_is_named(prompt: list[int], limit: int, words: str, llama: LoadedModel) -> None:
    generator = Generator(llama, NoFinetune().attach(llama.model, TASKS, seed=0), ROUTES, folds=False, batch_tokens=99)
    with pytest.raises(ModelError, match=rf"the row: .*{words}"):
        generator.run([GenerationRequest(id="the row", task=TASKS[0], prompt=prompt, limit=limit)], lambda batch: None)


rows = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2)), max_size=40)


@given(rows, st.integers(16, 300), st.randoms(use_true_random=False))
def test_a_plan_holds_each_row_once_within_the_budget_in_any_order(
    sizes: list[tuple[int, int, int]], budget: int, chance: random.Random
) -> None:
    requests = [
        GenerationRequest(id=str(i), task=TASKS[r], prompt=[7] * n, limit=m) for i, (n, m, r) in enumerate(sizes)
    ]
    batches = plan_batches(requests, budget, ROUTES)
    assert sorted(r.id for batch in batches for r in batch) == sorted(r.id for r in requests)
    for batch in batches:
        tokens = len(batch) * (max(len(r.prompt) for r in batch) + max(r.limit for r in batch))
        assert tokens <= budget or len(batch) == 1
    chance.shuffle(requests)
    assert plan_batches(requests, budget, ROUTES) == batches


def test_the_base_model_is_a_routing_of_its_own(llama: LoadedModel) -> None:
    requests = toy_requests(12, routes=3)
    expected = {r.id: reference(llama.model, r) for r in requests}
    base = BaseRouting(cgc(llama.model).off)
    for folds in (True, False):
        found = run(Generator(llama, base, ROUTES, folds=folds, batch_tokens=400), requests)
        assert {i: [t for t in tokens if t != EOS] for i, tokens in expected.items()} == {
            i: list(tokens) for i, tokens in found.items()
        }


def test_how_often_an_adapter_chose_which_task_is_counted(llama: LoadedModel) -> None:
    requests = toy_requests(24, routes=2)
    choosy = Spy(cgc(llama.model), choose=lambda prompt: 2)
    generator = Generator(llama, choosy, ROUTES, folds=True, batch_tokens=400, reads=True)
    assert generator.run(requests, lambda batch: None).chosen == {"add": {"sort": 12}, "copy": {"sort": 12}}
    assert Generator(llama, choosy, ROUTES, folds=True, batch_tokens=400).run([], lambda batch: None).chosen is None


def test_a_task_that_the_adapter_was_not_attached_for_is_refused(llama: LoadedModel) -> None:
    generator = Generator(llama, cgc(llama.model), ROUTES, folds=True, batch_tokens=400)
    with pytest.raises(HarnessError, match="no route for task 'subtract'"):
        generator.run([GenerationRequest(id="a", task="subtract", prompt=[7], limit=1)], lambda batch: None)
