"""Recorded decoding steps, with a recorder that returns the work itself in place of a CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from toy_generation import VOCABULARY, always, loaded, toy_requests

from harness.generation.decoding import Schedule, decode
from harness.generation.graph import RecordedStep, Work, recorder


def test_a_step_is_executed_then_recorded_then_replayed() -> None:
    done: list[str] = []

    def record(work: Work) -> Work:
        done.append("record")
        return lambda: done.append("replay")

    step = RecordedStep(lambda: done.append("work"), record)
    for _ in range(4):
        step()
    assert done == ["work", "record", "replay", "replay", "replay"]


def test_a_step_that_cannot_be_recorded_is_executed_and_the_reason_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def record(work: Work) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing")

    step = RecordedStep(lambda: done.append("work"), record)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            step()
    assert done == ["work"] * 3
    assert [r.message for r in caplog.records] == [
        "decoding runs without a graph, which is slower: operation not permitted when stream is capturing"
    ]


def test_a_recorded_step_generates_the_same_tokens(toy_llama: Callable[..., Any]) -> None:
    """In half precision a step writes to the same tensors every time, or a replay would not see the new token."""
    model = loaded(toy_llama(vocab_size=VOCABULARY), torch.bfloat16)
    requests = toy_requests(12)
    prompts, limits = [r.prompt for r in requests], [r.limit for r in requests]
    kept: list[tuple[int, ...]] = []

    def record(work: Work) -> Work:
        kept.append(())
        return work

    expected = decode(model, prompts, limits, always, slots=4)
    assert decode(model, prompts, limits, always, slots=4, schedule=Schedule(record=record)) == expected
    assert kept == [()], "one recording serves the whole batch"


def test_nothing_is_recorded_on_a_cpu() -> None:
    assert recorder(torch.device("cpu")) is None
