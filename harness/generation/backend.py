"""The predictions of an evaluation: by a method without a model, by the model loaded here, or by a back end.

Predictions are written in batches, each flushed to disk as soon as it is complete; an evaluation that resumes generates
only what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tqdm import tqdm

from harness.data.encoding import Encoder
from harness.data.splits import SplitExamples
from harness.errors import StoreError
from harness.generation.answers import Answering
from harness.generation.backend_prompts import backend_requests
from harness.generation.predictions import Completion, PredictionKey, PredictionWriter
from harness.generation.requests import together
from harness.inference import InferenceBackend
from harness.method import Baseline
from harness.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from harness.runtime.signals import StopFlag
from harness.store.record import GenerationSummary

_BACKEND_BATCH = 64
"""Requests that a back end gets at once: at most this many predictions are lost if it fails."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What generating took.

    chosen: where the adapter chooses the route from the prompt, how many prompts of each task it routed to which task.
    n_truncated: prompts that were too long, so that in-context examples or their middle were left out; None if unknown.
    """

    summary: GenerationSummary
    chosen: Mapping[str, Mapping[str, int]] | None = None
    n_truncated: int | None = None


Progress = Callable[[int], object]
"""Called with the number of predictions that have just been made."""


@contextmanager
def own_bar(total: int, done: int, quiet: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr, on a terminal only, and not if it is to be quiet."""
    with tqdm(total=total, initial=done, desc="generate", unit="example", disable=quiet or None) as bar:
        yield bar.update


@contextmanager
def _progress(
    total: int, done: int, outer: Progress | None, processes: ProcessGroup = SINGLE_PROCESS
) -> Iterator[Progress]:
    """Counts predictions on the caller's bar, or on one of this call's own; never more than there are.

    Of several ranks only rank 0 has a bar, which takes the others to be as fast.
    """
    left = total - done

    def count(n: int) -> None:
        # Sequences of a batch that is generated again are reported a second time.
        nonlocal left
        new = min(n * processes.world_size, left)
        left -= new
        update(new)

    if outer is not None:
        update = outer
        update(done)
        yield count
        return
    with own_bar(total, done, quiet=not processes.is_main) as update:
        yield count


def predict_without_model(
    method: Baseline,
    writer: PredictionWriter,
    train: SplitExamples | None,
    stop: StopFlag,
    progress: Progress | None = None,
) -> None:
    """The predictions of a baseline, from the training examples of each task. progress: as ``predict_with_model``."""
    done = writer.recover()
    if progress is not None:
        progress(len(done))
    for task, examples in writer.examples.items():
        left = [e for e in examples if PredictionKey(task, e.id) not in done]
        if left:
            blank = [replace(e, target="", document=None) for e in left]
            texts = method.predict(blank, train.of(task) if train is not None else [])
            completions = [
                Completion(id=e.id, text=text, tokens=0, truncated=False) for e, text in zip(left, texts, strict=True)
            ]
            writer.write(task, completions)
            if progress is not None:
                progress(len(left))
        stop.check()


def predict_with_model(
    answering: Answering, writer: PredictionWriter, stop: StopFlag, progress: Progress | None = None
) -> Generation:
    """Write every prediction that is not on disk yet; a batch that is only partly on disk is answered whole.

    Args:
        answering: with the ranks that share the work, each of which calls this. Rank 0 has all predictions when it
            returns.
        progress: counts predictions, those on disk among them; None for a bar of this call's own.

    Raises: StoreError if rank 0 does not find what the others have written.
    """
    processes = answering.processes
    done = processes.broadcast(writer.collect() if processes.is_main else set())
    started = time.perf_counter()
    total, own = sum(map(len, writer.examples.values())), writer.of_rank(processes.rank)
    with _progress(total, len(done), progress, processes) as count:

        def write(task: str, completions: Sequence[Completion]) -> None:
            own.write(task, [c for c in completions if PredictionKey(task, c.id) not in done])
            stop.check()

        def advance(n: int) -> None:
            count(n)
            stop.check()

        stats = together(processes.gather(answering.answer(writer.examples, write, done, advance)))
    if processes.is_main:
        _require_all(writer, total)
    summary = GenerationSummary(
        tokens=writer.n_tokens,
        seconds=time.perf_counter() - started,
        halved=stats.halved,
        unfolded=stats.unfolded,
        choices=stats.choices,
    )
    return Generation(summary=summary, chosen=stats.chosen, n_truncated=stats.truncated_prompts)


def _require_all(writer: PredictionWriter, total: int) -> None:
    """Collect the predictions of all ranks. Raises: StoreError if some are missing."""
    found = len(writer.collect())
    if found < total:
        raise StoreError(
            f"{writer.run.path} has {found} of {total} predictions: the ranks of torchrun must share this folder. "
            "Choose an --out on a disk that all machines have under the same path"
        )


def predict_with_backend(
    backend: InferenceBackend,
    encoder: Encoder,
    writer: PredictionWriter,
    stop: StopFlag,
    progress: Progress | None = None,
) -> Generation:
    """Request every prediction that is not on disk yet from a back end.

    Args:
        encoder: with the tokenizer that ``backend_prompts.tokenizer_of`` gives.
        progress: as ``predict_with_model``.

    Raises: ModelError if the back end fails; what it returned before is on disk.
    """
    done = writer.recover()
    started = time.perf_counter()
    total = sum(map(len, writer.examples.values()))
    with _progress(total, len(done), progress) as count:
        for task, examples in writer.examples.items():
            left = [e for e in examples if PredictionKey(task, e.id) not in done]
            for first in range(0, len(left), _BACKEND_BATCH):
                batch = left[first : first + _BACKEND_BATCH]
                texts = backend.predict(backend_requests(backend, encoder, task, batch))
                writer.write(task, [Completion(id=e.id, text=text) for e, text in zip(batch, texts, strict=True)])
                count(len(batch))
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
