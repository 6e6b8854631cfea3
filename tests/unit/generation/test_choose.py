"""Requests with several continuations: their likelihoods, in whole batches, folded as routed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from toy_generation import EOS, ROUTES, TASKS, always, cgc, toy_requests

from harness.generation.generator import Generator, plan_batches
from harness.generation.likelihood import likelihoods
from harness.generation.predictions import PredictionKey
from harness.generation.requests import ChoiceRequest, GenerationStats, Scored
from harness.models.loading import LoadedModel

pytestmark = pytest.mark.numeric


def _requests(n: int = 9) -> list[ChoiceRequest]:
    """Requests with one to three continuations, of one to three tokens."""
    return [
        ChoiceRequest(
            id=f"toy {i}",
            task=TASKS[i % 3],
            prompt=r.prompt,
            continuations=[[7, EOS][: i % 2 + 1], [8, 9, 10], [11]][: i % 3 + 1],
        )
        for i, r in enumerate(toy_requests(n))
    ]


def _chosen(generator: Generator, requests: Sequence[ChoiceRequest]) -> tuple[dict[str, Scored], GenerationStats]:
    found: dict[str, Scored] = {}
    stats = generator.choose(requests, lambda batch: found.update({one.id: one for one in batch}))
    return found, stats


@pytest.mark.parametrize("folds", [True, False])
def test_every_continuation_has_the_likelihood_that_it_has_alone(folds: bool, llama: LoadedModel) -> None:
    adapter, requests = cgc(llama.model), _requests()
    found, stats = _chosen(Generator(llama, adapter, ROUTES, folds=folds, batch_tokens=60), requests)
    assert stats.choices == sum(len(r.continuations) for r in requests)
    for request in requests:
        with adapter.apply(adapter.fold(request.task), merge=True):
            alone = [likelihoods(llama, [request.prompt], [c], always)[0] for c in request.continuations]
        assert [one.value for one in found[request.id].likelihoods] == pytest.approx([one.value for one in alone])
        assert [one.greedy for one in found[request.id].likelihoods] == [one.greedy for one in alone]


def test_batches_that_are_finished_are_left_out(llama: LoadedModel) -> None:
    requests = [dataclasses.replace(r, task=TASKS[0]) for r in _requests()]
    generator = Generator(llama, cgc(llama.model), ROUTES, folds=False, batch_tokens=12)
    whole = [{r.id for r in batch} for batch in plan_batches(requests, 4 * 12, ROUTES)]
    assert len(whole) > 2
    finished = {PredictionKey(TASKS[0], i) for i in (*whole[0], min(whole[1]))}
    batches: list[set[str]] = []
    generator.choose(requests, lambda batch: batches.append({one.id for one in batch}), finished)
    assert batches == whole[1:]


def test_progress_counts_each_request_once(llama: LoadedModel) -> None:
    counts: list[int] = []
    generator = Generator(llama, cgc(llama.model), ROUTES, folds=True, batch_tokens=60)
    generator.choose(_requests(), lambda batch: None, on_finished=counts.append)
    assert sum(counts) == 9
