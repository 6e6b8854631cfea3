"""The predictions of an evaluation: by a method without a model, by the model loaded here, or by a back end.

Predictions are written in batches, each flushed to disk as soon as it is complete; an evaluation that resumes generates
only what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from harness.data.encoding import Encoder
from harness.data.splits import SplitExamples
from harness.generation.answers import Answering
from harness.generation.backend_prompts import backend_requests
from harness.generation.predictions import Completion, PredictionKey, PredictionWriter
from harness.inference import InferenceBackend
from harness.method import Baseline
from harness.runtime.signals import StopFlag
from harness.store.record import GenerationSummary

_BACKEND_BATCH = 64
"""Requests that a back end gets at once: at most this many predictions are lost if it fails."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What generating took.

    chosen: where the adapter chooses the route from the prompt, how many prompts of each task it routed to which task.
    """

    summary: GenerationSummary
    chosen: Mapping[str, Mapping[str, int]] | None = None


def predict_without_model(
    method: Baseline, writer: PredictionWriter, train: SplitExamples | None, stop: StopFlag
) -> None:
    """The predictions of a baseline, from the training examples of each task."""
    done = writer.recover()
    for task, examples in writer.examples.items():
        left = [e for e in examples if PredictionKey(task, e.id) not in done]
        if left:
            blank = [replace(e, target="", document=None) for e in left]
            texts = method.predict(blank, train.of(task) if train is not None else [])
            completions = [
                Completion(id=e.id, text=text, tokens=0, truncated=False) for e, text in zip(left, texts, strict=True)
            ]
            writer.write(task, completions)
        stop.check()


def predict_with_model(answering: Answering, writer: PredictionWriter, stop: StopFlag) -> Generation:
    """Write every prediction that is not on disk yet; a batch that is only partly on disk is answered whole."""
    done = writer.recover()
    started = time.perf_counter()
    total = sum(map(len, writer.examples.values()))
    with tqdm(total=total, initial=len(done), desc="generate", unit="example", disable=None) as bar:

        def write(task: str, completions: Sequence[Completion]) -> None:
            writer.write(task, [c for c in completions if PredictionKey(task, c.id) not in done])
            stop.check()

        def advance(n: int) -> None:
            # Sequences of a batch that is answered again are reported a second time.
            bar.update(min(n, total - bar.n))
            stop.check()

        stats = answering.answer(writer.examples, write, finished=done, on_finished=advance)
    summary = GenerationSummary(
        tokens=writer.n_tokens,
        seconds=time.perf_counter() - started,
        halved=stats.halved,
        unfolded=stats.unfolded,
        choices=stats.choices,
    )
    return Generation(summary=summary, chosen=stats.chosen)


def predict_with_backend(
    backend: InferenceBackend, encoder: Encoder, writer: PredictionWriter, stop: StopFlag
) -> Generation:
    """Request every prediction that is not on disk yet from a back end.

    Args:
        encoder: with the tokenizer that ``backend_prompts.tokenizer_of`` gives.

    Raises: ModelError if the back end fails; what it returned before is on disk.
    """
    done = writer.recover()
    started = time.perf_counter()
    total = sum(map(len, writer.examples.values()))
    with tqdm(total=total, initial=len(done), desc="generate", unit="example", disable=None) as bar:
        for task, examples in writer.examples.items():
            left = [e for e in examples if PredictionKey(task, e.id) not in done]
            for first in range(0, len(left), _BACKEND_BATCH):
                batch = left[first : first + _BACKEND_BATCH]
                texts = backend.predict(backend_requests(backend, encoder, task, batch))
                writer.write(task, [Completion(id=e.id, text=text) for e, text in zip(batch, texts, strict=True)])
                bar.update(len(batch))
                stop.check()
    return Generation(summary=GenerationSummary(tokens=None, seconds=time.perf_counter() - started))


def total_generation(parts: Sequence[GenerationSummary | None]) -> GenerationSummary | None:
    """The sums over clusters; None if no model generated."""
    known = [p for p in parts if p is not None]
    if not known:
        return None
    tokens = [p.tokens for p in known if p.tokens is not None]
    return GenerationSummary(
        tokens=sum(tokens) if len(tokens) == len(known) else None,
        seconds=sum(p.seconds for p in known),
        halved=sum(p.halved for p in known),
        choices=sum(p.choices for p in known),
        unfolded=tuple(t for p in known for t in p.unfolded),
    )
