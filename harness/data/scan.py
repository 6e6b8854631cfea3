"""One pass over a split for ``harness validate``: every target is parsed, and hashes and lengths are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from harness.data.content import Segments
from harness.data.encoding import Encoder
from harness.data.validation_report import BLANK_PROMPT, EMPTY_TARGET, NOT_OFFERED, UNPARSED
from harness.task import NOT_PARSED, Example, Suite, to_example

if TYPE_CHECKING:
    from datasets import Dataset

BATCH: Final = 1000  # examples
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SplitScan:
    """A scanned split of n examples; all arrays have shape (n,) and the data set's order.

    task: position of the example's task in the suite's tasks. prompt, target: hashes of the texts without whitespace.
    segments: those of the prompts, see ``harness.data.content``.
    flaws: for each kind of flaw, which examples have it. prompt_tokens, target_tokens: None without a tokenizer.
    """

    split: str
    dataset: Dataset
    task: NDArray[np.int16]
    prompt: NDArray[np.uint64]
    target: NDArray[np.uint64]
    segments: Segments
    flaws: Mapping[str, Mask]
    prompt_tokens: NDArray[np.int32] | None
    target_tokens: NDArray[np.int32] | None

    @property
    def withheld(self) -> bool:
        """Whether no example has a target, as in a published test file. Training needs them, so train never counts."""
        return self.split != "train" and len(self.dataset) > 0 and bool(self.flaws[EMPTY_TARGET].all())

    def example(self, i: int) -> Example:
        """The example at position i, read again from the data set."""
        return to_example(self.dataset[i])


def scan_split(suite: Suite, split: str, dataset: Dataset, encoder: Encoder | None = None) -> SplitScan:
    """Scan a split in batches, in memory of a few bytes per example.

    Args:
        dataset: examples of the suite's tasks only.
        encoder: to count tokens; None: they are not counted.
    """
    tasks = {name: i for i, name in enumerate(suite.tasks)}
    n = len(dataset)
    task = np.zeros(n, np.int16)
    hashes, segments = np.zeros((2, n), np.uint64), Segments.empty(n)
    flaws = {kind: np.zeros(n, np.bool_) for kind in (EMPTY_TARGET, BLANK_PROMPT, UNPARSED, NOT_OFFERED)}
    tokens = None if encoder is None else np.zeros((2, n), np.int32)
    for start, batch in _batches(dataset):
        for i, example in enumerate(batch, start):
            task[i] = tasks[example.task]
            hashes[:, i] = _hash(example.prompt), _hash(example.target)
            segments.put(i, example)
            for kind in _flaws(suite, example):
                flaws[kind][i] = True
        if tokens is not None and encoder is not None:
            end = start + len(batch)
            tokens[0, start:end] = encoder.prompt_lengths(batch)
            tokens[1, start:end] = [len(ids) for ids in encoder.targets(batch)]
    return SplitScan(
        split=split,
        dataset=dataset,
        task=task,
        prompt=hashes[0],
        target=hashes[1],
        segments=segments,
        flaws=flaws,
        prompt_tokens=None if tokens is None else tokens[0],
        target_tokens=None if tokens is None else tokens[1],
    )


def _batches(dataset: Dataset) -> Iterator[tuple[int, list[Example]]]:
    """Consecutive examples, with the position of the first."""
    for start in range(0, len(dataset), BATCH):
        columns = dataset[start : start + BATCH]
        names = list(columns)
        yield (
            start,
            [to_example(dict(zip(names, values, strict=True))) for values in zip(*columns.values(), strict=True)],
        )


def _flaws(suite: Suite, example: Example) -> Iterator[str]:
    if not example.prompt.strip():
        yield BLANK_PROMPT
    if not example.has_target:
        yield EMPTY_TARGET
        return
    task = suite.tasks[example.task]
    answer = next(iter(task.protocols.values())).parse(example.target, example)
    if answer is NOT_PARSED:
        yield UNPARSED
    elif task.invented is not None and task.invented(answer, example):
        yield NOT_OFFERED


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b("".join(text.split()).encode(), digest_size=8).digest())
