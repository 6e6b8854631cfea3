"""Likelihoods are sums over tokens, and go through the adapter."""

from __future__ import annotations

import pytest
import torch
from toy_generation import EOS, ROUTES, TASKS, VOCABULARY, always, cgc, toy, toy_requests

from harness.generation.decoding import decode
from harness.generation.generator import Generator
from harness.generation.likelihood import likelihoods
from harness.generation.requests import Choice
from harness.models.loading import LoadedModel

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("kind", ["full attention", "encoder-decoder"])
def test_likelihoods_are_sums_over_tokens_read_one_by_one(kind: str, llama: LoadedModel) -> None:
    model = llama if kind == "full attention" else toy(kind)
    prompts = [r.prompt for r in toy_requests(6)]
    continuations = [[7], [8, 9, 10], [11, EOS], [6, 6], [12, 13, 14, 15], [EOS]]
    sums = [found.value for found in likelihoods(model, prompts, continuations, always)]
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
        Choice(id=f"{i} {c}", task=TASKS[i % 3], prompt=r.prompt, continuation=[c, EOS])
        for i, r in enumerate(toy_requests(6))
        for c in (7, 8)
    ]
    folded, routed = (
        [x.value for x in Generator(llama, adapter, ROUTES, folds=folds, batch_tokens=size).likelihoods(choices)]
        for folds, size in ((True, 100), (False, 1000))
    )
    assert folded == pytest.approx(routed, rel=1e-3)
    with adapter.off():
        base = likelihoods(llama, [c.prompt for c in choices], [c.continuation for c in choices], always)
    assert max(abs(found - b.value) for found, b in zip(folded, base, strict=True)) > 0.1


def test_greedy_marks_the_continuations_that_greedy_decoding_generates(llama: LoadedModel) -> None:
    prompts = [[10, 11, 12, 13], [14], [15, 16]]
    generated = decode(llama, prompts, [5, 3, 1], always)
    other = [[*row[:-1], (row[-1] + 1) % VOCABULARY] for row in generated]
    found = likelihoods(llama, prompts * 2, [*generated, *other], always)
    assert [x.greedy for x in found] == [True] * 3 + [False] * 3
    assert all(yes.value > no.value for yes, no in zip(found[:3], found[3:], strict=True))
