"""``harness validate``: check the data of a suite before anything is trained on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from harness.data.chat import check_style
from harness.data.content import content_keys
from harness.data.encoding import Encoder, generation_limits
from harness.data.omissions import no_target, of_tasks, other_tasks, other_tasks_note
from harness.data.read import contents, read_split
from harness.data.scan import Mask, SplitScan, scan_split
from harness.data.splits import group
from harness.data.validation_report import (
    DUPLICATE,
    EMPTY_TARGET,
    LEAK,
    LEAKED_CONTENT,
    TRUNCATED,
    Finding,
    Lengths,
    TaskSplit,
    ValidationReport,
)
from harness.errors import DataError, UsageError
from harness.task import MIN_EXAMPLES, Suite

_TARGETS: Final = 3
_PROBED: Final = 30
"""Examples of a task among whose targets the first different ones are chosen."""


@dataclass(frozen=True, kw_only=True)
class SamePrompt:
    """For each example of a split, the position of an example in ``other`` with the same prompt or content, or -1."""

    other: SplitScan
    position: NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ScannedSplits:
    """The splits that could be read, the reason for each that could not, the splits that do not exist, and remarks."""

    scans: list[SplitScan] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """A scanned split of n examples. content: (n,) hashes of their contents, 0 if none was found."""

    scan: SplitScan
    content: NDArray[np.uint64] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class CheckedSplit:
    """A split with all its flaws. flaws: by kind, which examples have it. same: for duplicates and leaks, the match."""

    scan: SplitScan
    flaws: Mapping[str, Mask]
    same: Mapping[str, Sequence[SamePrompt]]


def validate(
    suite: Suite,
    source: str,
    tokenizer: Any = None,
    max_length: int | None = None,
    *,
    tasks: Sequence[str] | None = None,
    style: str = "plain",
    template: Mapping[str, Any] | None = None,
    limit: int = 10,
) -> ValidationReport:
    """Read every split of a source and report what would invalidate a run or a score.

    Prompts are compared as texts without whitespace. Between splits, their contents are also compared without the
    templates around them (``harness.data.content``).

    Args:
        tokenizer: a tokenizer of transformers; without one the report has no lengths.
        max_length: maximum sequence length in tokens; examples that training would truncate to it are reported.
        tasks: the tasks to check; None for all of the suite's, where an example of another task is an error.
        style, template: of the prompts whose tokens are counted, and the arguments of their chat template.
        limit: the number of findings that are listed for each kind and split.

    Raises: DataError if the source cannot be found (a split that cannot be used is part of the report); UsageError for
        max_length without a tokenizer.
    """
    if max_length is not None and tokenizer is None:
        raise UsageError("--max-length is in tokens, so it needs a tokenizer: add --model with the name of a model")
    names = tuple(suite.tasks) if tasks is None else tuple(tasks)
    encoder = None
    if tokenizer is not None:
        check_style(tokenizer, style, template or {})
        encoder = Encoder(
            tokenizer=tokenizer, style=style, template=template or {}, eos=0, max_length=max_length or 0, limits={}
        )
    found = _scan(suite, source, names, encoder, strict=tasks is None)
    scans = found.scans
    limits = None if encoder is None or max_length is None else _prompt_limits(suite, scans, encoder)
    contents = content_keys([s.segments for s in scans], [s.task for s in scans]) if scans else []
    scanned = [Scanned(scan=scan, content=content) for scan, content in zip(scans, contents, strict=True)]
    checked = [_check(split, scanned[:i], limits, max_length) for i, split in enumerate(scanned)]
    return ValidationReport(
        suite=suite.name,
        source=source,
        max_length=max_length,
        tasks=tuple(counts for split in checked for counts in _count(suite, split, names)),
        findings=tuple(finding for split in checked for finding in _findings(suite, source, split, limit)),
        errors=found.errors,
        absent=tuple(found.absent),
        withheld=tuple(scan.split for scan in scans if scan.withheld),
        remarks=(*found.notes, *_remarks(suite, source, scans, names)),
        targets=_first_targets(scans, suite, names),
    )


def _scan(suite: Suite, source: str, names: Sequence[str], encoder: Encoder | None, *, strict: bool) -> ScannedSplits:
    """Read every split. strict: examples of tasks that the suite does not have are an error."""
    found = ScannedSplits()
    for split in suite.splits(source) or ("train",):  # without splits, the suite's own error says what is missing
        try:
            dataset = read_split(suite, source, split)
            others = other_tasks(suite, source, split, dataset, strict=strict)
        except DataError as error:
            found.errors[split] = str(error)
            continue
        if others:
            found.notes.append(other_tasks_note(split, others, suite.name))
        scan = scan_split(suite, split, of_tasks(dataset, names), encoder)
        found.scans.append(scan)
        if split == "train" and len(scan.dataset) and scan.flaws[EMPTY_TARGET].all():
            found.errors[split] = str(no_target(suite, source, split, scan.example(0).id))
    _add_absent(suite, source, found)
    return found


def _add_absent(suite: Suite, source: str, found: ScannedSplits) -> None:
    """Name the splits that a folder does not have; one that something else in the folder is named after is an error."""
    folder, splits = Path(source).expanduser(), suite.splits(source)
    if not splits or not folder.is_dir():
        return
    found.absent.extend(split for split in ("train", "dev", "test") if split not in splits)
    read = sorted(file.name for file in suite.files(source))
    for split in found.absent:
        named = sorted(p.name for p in folder.iterdir() if p.name.casefold().split(".")[0] == split)
        if named and read:
            found.errors[split] = (
                f"{' and '.join(named)} in {source} {'is' if len(named) == 1 else 'are'} not read. The {split} split "
                f"must be a plain file {split}{Path(read[0]).suffix}, as {read[0]} is"
            )
    others = [split for split in found.absent if split not in found.errors]
    if others:
        found.notes.append(f"there is no {' and no '.join(others)} split.{contents(source)}")


def _prompt_limits(suite: Suite, scans: Sequence[SplitScan], encoder: Encoder) -> NDArray[np.int64]:
    """The maximum length of a prompt in tokens, by task, as in training."""
    names = list(suite.tasks)
    train = next((group(scan.dataset, scan.split, names) for scan in scans if scan.split == "train"), None)
    encoder = dataclasses.replace(encoder, limits=generation_limits(encoder.tokenizer, train, names, None))
    return np.array([encoder.room(name) for name in names])


def _check(
    split: Scanned, earlier: Sequence[Scanned], limits: NDArray[np.int64] | None, max_length: int | None
) -> CheckedSplit:
    """Add the flaws that need more than one example: duplicates, leaks, and truncation by the task's limit."""
    scan = split.scan
    first = _first_position(scan.prompt, scan.prompt)
    first[first == np.arange(len(first))] = -1
    leaks = [_same(other.scan, scan.prompt, other.scan.prompt) for other in earlier]
    contents = [_same(other.scan, split.content, other.content) for other in earlier]
    leaked = _any_of(leaks, len(first))
    same_content = _any_of(contents, len(first)) & (split.content != 0) & ~leaked
    flaws = {**scan.flaws, DUPLICATE: first >= 0, LEAK: leaked, LEAKED_CONTENT: same_content}
    if limits is not None and max_length is not None:
        assert scan.prompt_tokens is not None
        assert scan.target_tokens is not None
        prompt_limit = limits[scan.task]
        target_limit = max_length - np.minimum(scan.prompt_tokens, prompt_limit) - 1  # one token is the eos
        flaws[TRUNCATED] = (scan.prompt_tokens > prompt_limit) | (scan.target_tokens > target_limit)
    duplicates = [SamePrompt(other=scan, position=first)]
    return CheckedSplit(scan=scan, flaws=flaws, same={DUPLICATE: duplicates, LEAK: leaks, LEAKED_CONTENT: contents})


def _same(other: SplitScan, hashes: NDArray[np.uint64], among: NDArray[np.uint64]) -> SamePrompt:
    return SamePrompt(other=other, position=_first_position(hashes, among))


def _any_of(matches: Sequence[SamePrompt], n: int) -> Mask:
    """Which of n examples have a match."""
    found = np.zeros(n, np.bool_)
    for match in matches:
        found |= match.position >= 0
    return found


def _first_position(hashes: NDArray[np.uint64], among: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each hash its first position in ``among``, or -1."""
    if not len(among):
        return np.full(len(hashes), -1, np.int64)
    values, positions = np.unique(among, return_index=True)
    candidate = np.minimum(np.searchsorted(values, hashes), len(values) - 1)
    return np.where(values[candidate] == hashes, positions[candidate], -1).astype(np.int64)


def _count(suite: Suite, split: CheckedSplit, names: Sequence[str]) -> Iterator[TaskSplit]:
    scan = split.scan
    for i, name in enumerate(suite.tasks):
        if name not in names:
            continue
        of_task = scan.task == i
        counts: dict[str, int | None] = {kind: int((mask & of_task).sum()) for kind, mask in split.flaws.items()}
        yield TaskSplit(
            task=name,
            split=scan.split,
            n=int(of_task.sum()),
            counts={TRUNCATED: None, **counts},
            prompt=_lengths(scan.prompt_tokens, of_task),
            target=_lengths(scan.target_tokens, of_task),
        )


def _first_targets(scans: Sequence[SplitScan], suite: Suite, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The first different targets of each task that has any, from the first split with them."""
    found: dict[str, tuple[str, ...]] = {}
    for scan in scans:
        for i, name in enumerate(suite.tasks):
            if name in names and name not in found:
                first = np.flatnonzero((scan.task == i) & ~scan.flaws[EMPTY_TARGET])[:_PROBED]
                targets = tuple(dict.fromkeys(scan.example(int(at)).target for at in first))[:_TARGETS]
                found |= {name: targets} if targets else {}
    return found


def _lengths(tokens: NDArray[np.int32] | None, of_task: Mask) -> Lengths | None:
    if tokens is None or not of_task.any():
        return None
    chosen = tokens[of_task]
    p50, p95, p99 = (int(q) for q in np.quantile(chosen, [0.5, 0.95, 0.99], method="higher"))
    return Lengths(mean=float(chosen.mean()), p50=p50, p95=p95, p99=p99, max=int(chosen.max()))


def _findings(suite: Suite, source: str, split: CheckedSplit, limit: int) -> list[Finding]:
    """The first ``limit`` flaws of each kind, with their places in the source."""
    scan = split.scan
    findings: list[Finding] = []
    for kind, mask in split.flaws.items():
        if kind == EMPTY_TARGET and scan.withheld:
            continue
        for i in np.flatnonzero(mask)[:limit]:
            example = scan.example(int(i))
            what = "content" if kind == LEAKED_CONTENT else "prompt"
            note = _note(scan, int(i), split.same.get(kind, ()), what)
            findings.append(Finding(kind=kind, split=scan.split, task=example.task, id=example.id, note=note))
    places = suite.locate(source, scan.split, {f.id for f in findings}) if findings else {}
    return [dataclasses.replace(f, where=places.get(f.id)) for f in findings]


def _note(scan: SplitScan, i: int, same: Sequence[SamePrompt], what: str) -> str | None:
    """Which example has the same prompt or content (``what``), and whether the targets are equal too."""
    for match in same:
        j = int(match.position[i])
        if j >= 0:
            targets = "with the same target" if scan.target[i] == match.other.target[j] else "with another target"
            return f"same {what} as {match.other.example(j).id} ({match.other.split}), {targets}"
    return None


def _remarks(suite: Suite, source: str, scans: Sequence[SplitScan], names: Sequence[str]) -> Iterator[str]:
    # On the embedded sample a mean is over all tasks, however few examples they have.
    is_sample = suite.sample is not None and Path(source) == suite.sample
    for scan in scans:
        counts = np.bincount(scan.task, minlength=len(suite.tasks))
        none = [name for name, n in zip(suite.tasks, counts, strict=True) if n == 0 and name in names]
        few = [f"{name} ({n})" for name, n in zip(suite.tasks, counts, strict=True) if 0 < n < MIN_EXAMPLES]
        if none:
            yield f"{scan.split}: no examples of {', '.join(none)}"
        if few and scan.split == "test" and not is_sample:
            yield (
                f"test: fewer than {MIN_EXAMPLES} examples, so a leaderboard's mean leaves these tasks out: "
                f"{', '.join(few)}"
            )
