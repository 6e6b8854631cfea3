"""What is wrong with the data before anything is trained on them: `harness validate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from harness.data import group
from harness.encode import Encoder, generation_limits
from harness.errors import DataError, UsageError
from harness.task import Suite
from harness.validate_report import CUT, DUPLICATE, EMPTY, LEAK, Finding, Lengths, TaskSplit, ValidationReport
from harness.validate_scan import Mask, Scan, scan_split

FEW: Final = 50  # a task with fewer test rows is left out of the mean


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
        few = [f"{name} ({n})" for name, n in zip(suite.tasks, counts, strict=True) if 0 < n < FEW]
        if none:
            yield f"{scan.split}: no rows of {', '.join(none)}"
        if few and scan.split == "test":
            yield f"test: fewer than {FEW} rows, too few for a leaderboard's mean: {', '.join(few)}"
