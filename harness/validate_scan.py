"""One split seen once, and what is kept of it: numbers alone, so that a million lines fit anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.task import NOT_PARSED, Example, Suite, to_example
from harness.validate_report import BLANK, EMPTY, STRANGER, UNPARSED

if TYPE_CHECKING:
    from datasets import Dataset

BATCH: Final = 1000
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What is kept of a split; arrays of length n, in the data set's order. task: position in the suite's tasks."""

    split: str
    dataset: Dataset
    task: NDArray[np.int16]
    prompt: NDArray[np.uint64]  # hash
    target: NDArray[np.uint64]  # hash
    flags: Mapping[str, Mask]
    prompt_tokens: NDArray[np.int32] | None
    target_tokens: NDArray[np.int32] | None

    @property
    def withheld(self) -> bool:
        """Whether no row has a target."""
        return bool(self.flags[EMPTY].all())

    def example(self, i: int) -> Example:
        """Row i, read again."""
        return to_example(self.dataset[i])


def scan_split(suite: Suite, split: str, dataset: Dataset, tokenizer: Any) -> Scan:
    """Read a split in batches: parse every target, hash every text, count tokens where there is a tokenizer."""
    codes = {name: code for code, name in enumerate(suite.tasks)}
    n = len(dataset)
    task = np.zeros(n, np.int16)
    hashes = np.zeros((2, n), np.uint64)
    flags = {kind: np.zeros(n, np.bool_) for kind in (EMPTY, BLANK, UNPARSED, STRANGER)}
    tokens = None if tokenizer is None else np.zeros((2, n), np.int32)
    for start, batch in _batches(dataset):
        for i, example in enumerate(batch, start):
            if example.task not in codes:
                raise DataError(
                    f"suite {suite.name!r} gave {example.id} the task {example.task!r}, which it does not have"
                )
            task[i] = codes[example.task]
            hashes[:, i] = _hash(example.prompt), _hash(example.target)
            for kind in _flaws(suite, example):
                flags[kind][i] = True
        if tokens is not None:
            end = start + len(batch)
            tokens[0, start:end] = _count(tokenizer, [e.prompt for e in batch], special=True)
            tokens[1, start:end] = _count(tokenizer, [e.target for e in batch], special=False)
    return Scan(
        split=split,
        dataset=dataset,
        task=task,
        prompt=hashes[0],
        target=hashes[1],
        flags=flags,
        prompt_tokens=None if tokens is None else tokens[0],
        target_tokens=None if tokens is None else tokens[1],
    )


def _batches(dataset: Dataset) -> Iterator[tuple[int, list[Example]]]:
    for start in range(0, len(dataset), BATCH):
        columns = dataset[start : start + BATCH]
        names = list(columns)
        yield start, [to_example(dict(zip(names, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _flaws(suite: Suite, example: Example) -> Iterator[str]:
    if not example.prompt.strip():
        yield BLANK
    if not example.target.strip():
        yield EMPTY
        return
    task = suite.tasks[example.task]
    answer = next(iter(task.protocols.values())).parse(example.target, example)
    if answer is NOT_PARSED:
        yield UNPARSED
    elif task.invented is not None and task.invented(answer, example):
        yield STRANGER


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b("".join(text.split()).encode(), digest_size=8).digest())


def _count(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[int]:
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=special)["input_ids"]]
