"""What is wrong with the data before anything is trained on them: `harness validate`."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from harness.data.encoding import Encoder, generation_limits
from harness.data.rows import group
from harness.data.validation_report import (
    BLANK,
    CUT,
    DUPLICATE,
    EMPTY,
    LEAK,
    STRANGER,
    UNPARSED,
    Finding,
    Lengths,
    TaskSplit,
    ValidationReport,
)
from harness.errors import DataError, UsageError
from harness.task import MIN_EXAMPLES, NOT_PARSED, Example, Suite, to_example

if TYPE_CHECKING:
    from datasets import Dataset


def validate(
    suite: Suite, source: str, tokenizer: Any = None, max_length: int | None = None, *, limit: int = 10
) -> ValidationReport:
    """Read every split of a source and look for what would spoil a run or a score.

    Prompts are compared as texts without whitespace: the same content in two templates is not seen.

    Args:
        tokenizer: of transformers; without one no lengths are reported.
        max_length: of a whole row, in tokens; rows that training would cut at it are counted.
        limit: findings listed of each kind and split.

    Raises: DataError where the source itself cannot be found; a split that cannot be read is reported. UsageError for
        max_length without a tokenizer.
    """
    if max_length is not None and tokenizer is None:
        raise UsageError("rows are measured in a model's tokens: name the model whose tokenizer counts them")
    scans: list[Scan] = []
    errors: dict[str, str] = {}
    for split in suite.splits(source) or ("train",):  # the suite's own words where there is nothing to read
        try:
            dataset = suite.read(source, split)
        except DataError as error:
            errors[split] = str(error)
            continue
        scans.append(scan_split(suite, split, dataset, tokenizer))
    rooms = _rooms(suite, scans, tokenizer, max_length)
    rows: list[TaskSplit] = []
    findings: list[Finding] = []
    for i, scan in enumerate(scans):
        masks, partners = _masks(scan, scans[:i], rooms, max_length)
        rows += _rows(suite, scan, masks)
        findings += _findings(suite, source, scan, masks, partners, limit)
    return ValidationReport(
        suite=suite.name,
        source=source,
        max_length=max_length,
        rows=tuple(rows),
        findings=tuple(findings),
        errors=errors,
        withheld=tuple(scan.split for scan in scans if scan.withheld),
        remarks=tuple(_remarks(suite, scans)),
    )


@dataclass(frozen=True, kw_only=True)
class _Partners:
    """Which row each row of a split repeats: its position, in that split, or -1."""

    scan: Scan
    of: NDArray[np.int64] = field(repr=False)


def _rooms(suite: Suite, scans: Sequence[Scan], tokenizer: Any, max_length: int | None) -> NDArray[np.int64] | None:
    """The tokens that a prompt of each task may have, by the rule of training."""
    if max_length is None:
        return None
    names = list(suite.tasks)
    train = next((group(s.dataset, s.split, names) for s in scans if s.split == "train"), None)
    limits = generation_limits(tokenizer, train, names, None)
    encoder = Encoder(tokenizer=tokenizer, style="plain", eos=0, max_length=max_length, limits=limits)
    return np.array([encoder.room(name) for name in names])


def _masks(
    scan: Scan, earlier: Sequence[Scan], rooms: NDArray[np.int64] | None, max_length: int | None
) -> tuple[dict[str, Mask], dict[str, list[_Partners]]]:
    masks = dict(scan.flags)
    twins = _Partners(scan=scan, of=_first(scan.prompt, scan.prompt))
    twins.of[twins.of == np.arange(len(twins.of))] = -1
    leaks = [_Partners(scan=other, of=_first(scan.prompt, other.prompt)) for other in earlier]
    masks[DUPLICATE] = twins.of >= 0
    masks[LEAK] = np.zeros(len(scan.prompt), np.bool_)
    for partners in leaks:
        masks[LEAK] |= partners.of >= 0
    if rooms is not None and max_length is not None:
        assert scan.prompt_tokens is not None
        assert scan.target_tokens is not None
        room = rooms[scan.task]
        kept = np.minimum(scan.prompt_tokens, room)
        masks[CUT] = (scan.prompt_tokens > room) | (scan.target_tokens > max_length - kept - 1)
    return masks, {DUPLICATE: [twins], LEAK: leaks}


def _first(hashes: NDArray[np.uint64], among: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each hash the first position at which ``among`` has it, or -1."""
    if not len(among):
        return np.full(len(hashes), -1, np.int64)
    values, positions = np.unique(among, return_index=True)
    nearest = np.minimum(np.searchsorted(values, hashes), len(values) - 1)
    return np.where(values[nearest] == hashes, positions[nearest], -1).astype(np.int64)


def _rows(suite: Suite, scan: Scan, masks: Mapping[str, Mask]) -> Iterator[TaskSplit]:
    for code, name in enumerate(suite.tasks):
        mine = scan.task == code
        counts: dict[str, int | None] = {kind: int((mask & mine).sum()) for kind, mask in masks.items()}
        yield TaskSplit(
            task=name,
            split=scan.split,
            n=int(mine.sum()),
            counts={CUT: None, **counts},
            prompt=_lengths(scan.prompt_tokens, mine),
            target=_lengths(scan.target_tokens, mine),
        )


def _lengths(tokens: NDArray[np.int32] | None, mine: Mask) -> Lengths | None:
    if tokens is None or not mine.any():
        return None
    chosen = tokens[mine]
    p50, p95, p99 = (int(q) for q in np.quantile(chosen, [0.5, 0.95, 0.99], method="higher"))
    return Lengths(mean=float(chosen.mean()), p50=p50, p95=p95, p99=p99, max=int(chosen.max()))


def _findings(
    suite: Suite,
    source: str,
    scan: Scan,
    masks: Mapping[str, Mask],
    partners: Mapping[str, Sequence[_Partners]],
    limit: int,
) -> list[Finding]:
    found: list[Finding] = []
    for kind, mask in masks.items():
        if kind == EMPTY and scan.withheld:
            continue
        for i in np.flatnonzero(mask)[:limit]:
            example = scan.example(int(i))
            note = _note(scan, int(i), partners.get(kind, ()))
            found.append(Finding(kind=kind, split=scan.split, task=example.task, id=example.id, note=note))
    places = suite.locate(source, scan.split, {f.id for f in found}) if found else {}
    return [dataclasses.replace(f, where=places.get(f.id)) for f in found]


def _note(scan: Scan, i: int, partners: Sequence[_Partners]) -> str | None:
    for other in partners:
        j = int(other.of[i])
        if j >= 0:
            targets = "same target" if scan.target[i] == other.scan.target[j] else "another target"
            return f"as {other.scan.example(j).id} ({other.scan.split}), {targets}"
    return None


def _remarks(suite: Suite, scans: Sequence[Scan]) -> Iterator[str]:
    for scan in scans:
        counts = np.bincount(scan.task, minlength=len(suite.tasks))
        none = [name for name, n in zip(suite.tasks, counts, strict=True) if n == 0]
        few = [f"{name} ({n})" for name, n in zip(suite.tasks, counts, strict=True) if 0 < n < MIN_EXAMPLES]
        if none:
            yield f"{scan.split}: no rows of {', '.join(none)}"
        if few and scan.split == "test":
            yield f"test: fewer than {MIN_EXAMPLES} rows, too few for a leaderboard's mean: {', '.join(few)}"


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
