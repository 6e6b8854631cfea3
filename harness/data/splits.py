"""The examples of a split, grouped by task."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from harness.config.spec import DataSpec, EvalConfig
from harness.data.content import Segments, content_keys
from harness.data.omissions import blank_note, has_target, no_target, other_tasks, other_tasks_note, place, task_names
from harness.data.read import contents, read_split
from harness.errors import DataError, UsageError, unknown
from harness.registry import list_command
from harness.task import Example, Suite, to_example

if TYPE_CHECKING:
    from datasets import Dataset

LOG: Final = logging.getLogger(__name__)
Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SplitExamples:
    """The examples of one split, grouped by task.

    by_task: positions in the data set, in the source's order. blank: positions of the examples that were left out
        because they have no target, by task.
    """

    split: str
    dataset: Dataset
    by_task: Mapping[str, Indices]
    blank: Mapping[str, Indices] = field(default_factory=dict)

    def at(self, indices: Sequence[int] | Indices) -> list[Example]:
        """The examples at these positions of the data set."""
        if len(indices) == 0:
            return []
        columns = self.dataset[[int(i) for i in indices]]
        return [to_example({k: columns[k][i] for k in columns}) for i in range(len(indices))]

    def of(self, task: str) -> list[Example]:
        """All examples of a task."""
        return self.at(self.by_task[task])

    @property
    def missing(self) -> list[str]:
        """Tasks without examples in this split."""
        return [task for task, indices in self.by_task.items() if not len(indices)]

    def with_examples(self) -> SplitExamples:
        """The same split without the tasks that have no examples in it."""
        return replace(self, by_task={task: indices for task, indices in self.by_task.items() if len(indices)})

    @property
    def counts(self) -> dict[str, int]:
        return {task: len(indices) for task, indices in self.by_task.items()}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which examples of a split are used. part: "tune" or "report", one of two parts that have no content in common.

    per_task: at most this many examples of each task; at least one group of examples, if groups are larger.
    """

    per_task: int | None = None
    part: str | None = None

    @classmethod
    def of(cls, config: EvalConfig) -> Choice:
        """The choice of an evaluation."""
        return cls(per_task=config.per_task, part=config.part)


def in_part(examples: Sequence[Example], part: str) -> NDArray[np.bool_]:
    """Which examples of one task belong to a part of its split: half of the different contents, by their hashes.

    Equal contents are in the same part, whatever the templates around them (``harness.data.content``). So are the
    examples of a group, which are scored together: a group is one content.
    """
    segments = Segments.empty(len(examples))
    for i, example in enumerate(examples):
        segments.put(i, example)
    (keys,) = content_keys([segments], [np.zeros(len(examples), np.int16)])
    names = [
        f"group {example.group}"
        if example.group is not None
        else (f"content {key}" if key else "".join(example.prompt.split()))
        for key, example in zip(keys.tolist(), examples, strict=True)
    ]
    contents = [hashlib.sha256(name.encode()).digest() for name in names]
    ordered = sorted(set(contents))
    tune = set(ordered[: len(ordered) // 2])
    return np.array([(content in tune) == (part == "tune") for content in contents], dtype=np.bool_)


@dataclass(frozen=True, kw_only=True)
class Use:
    """What the examples of a split are for.

    strict: an example of a task that the suite does not have is an error. It is not where the user has chosen tasks.
    withheld: the examples are predicted, so that tasks without a single target are kept; they have no score.
    allow_empty: a split without an example of any of the tasks is not an error.
    needs_targets: with ``allow_empty``, a split that has examples but not a single target is an error nevertheless.
    """

    strict: bool = False
    withheld: bool = False
    allow_empty: bool = False
    needs_targets: bool = False


ALL = Choice()
LABELLED = Use()


def group(
    dataset: Dataset, split: str, tasks: Sequence[str], choice: Choice = ALL, *, withheld: bool = False
) -> SplitExamples:
    """Group a split's examples by task, without those that have no target.

    ``choice.per_task`` keeps the examples whose ids have the smallest hashes: the same ones for every seed, and a
    smaller number keeps a subset of a larger one. Of examples with a group, it keeps the groups with the smallest
    hashes, each as a whole (see ``harness.task.Example``).

    Args: withheld: a task without a single target keeps its examples, as in a published test file.
    """
    names, answered = task_names(dataset), has_target(dataset)
    by_task, blank = {}, {}
    for task in tasks:
        of_task = names == task
        keep_all = withheld and not answered[of_task].any()
        blank[task] = np.flatnonzero(of_task & ~answered & (not keep_all)).astype(np.int64)
        indices = np.flatnonzero(of_task & (answered | keep_all)).astype(np.int64)
        if choice.part is not None:
            whole = SplitExamples(split=split, dataset=dataset, by_task={task: indices})
            indices = indices[in_part(whole.of(task), choice.part)]
        per_task = choice.per_task
        if per_task is not None and len(indices) > per_task:
            indices = _limited(dataset, indices, per_task)
        by_task[task] = indices
    return SplitExamples(split=split, dataset=dataset, by_task=by_task, blank=blank)


def _limited(dataset: Dataset, indices: Indices, per_task: int) -> Indices:
    """The first groups in the order of their hashes that have at most ``per_task`` examples together, or the first."""
    columns = dataset.select(indices)
    names = columns["group"] if "group" in dataset.column_names else [None] * len(indices)
    members: dict[str, list[int]] = {}
    for i, (id_, name) in enumerate(zip(columns["id"], names, strict=True)):
        members.setdefault(id_ if name is None else name, []).append(i)
    kept: list[int] = []
    for name in sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if kept and len(kept) + len(members[name]) > per_task:
            break
        kept += members[name]
    return np.sort(indices[kept])


def load_split(
    suite: Suite,
    source: str,
    split: str,
    tasks: Sequence[str],
    choice: Choice = ALL,
    *,
    hint: str = "",
    use: Use = LABELLED,
) -> SplitExamples:
    """Read the examples of some tasks from one split of a source, and log how many were left out for which reason.

    Examples without a target are left out, and those of tasks that the suite does not have.

    Args:
        choice: which examples of the split are used.
        hint: what the user can do where the split is missing or empty; it ends the error message.
        use: what the examples are for.

    Returns: the examples by task; a task without examples has an empty entry (see ``SplitExamples.with_examples``).
    Raises: DataError if the source has no such split, or no example of any of the tasks in it, or none with a target;
        for a task that the suite does not have, if ``use.strict``.
    """
    hint = f". {hint}" if hint else ""
    splits = suite.splits(source)
    if splits and split not in splits:  # where nothing can be read at all, the suite's own error says why
        raise DataError(f"{source} has no {split} split (it has {', '.join(splits)}){hint}.{contents(source)}")
    dataset = read_split(suite, source, split)
    others = other_tasks(suite, source, split, dataset, strict=use.strict)
    found = group(dataset, split, tasks, choice, withheld=use.withheld)
    n_blank = {task: len(indices) for task, indices in found.blank.items()}
    n = sum(found.counts.values())
    first = min((int(indices[0]) for indices in found.blank.values() if len(indices)), default=None)
    if not n and first is not None and (use.needs_targets or not use.allow_empty):
        raise no_target(suite, source, split, str(dataset[first]["id"]), hint)
    if not n and not use.allow_empty:
        raise DataError(f"{source}: the {split} split has no examples of {', '.join(tasks)}{hint}")
    if others:
        LOG.warning("%s", other_tasks_note(split, others, suite.name))
    if first is not None:
        LOG.warning("%s", blank_note(split, n_blank, place(suite, source, split, str(dataset[first]["id"]))))
    return found


def choose_tasks(suite: Suite, tasks: str | None) -> list[str]:
    """The tasks of ``--tasks A,B`` in the suite's order; None means all. Raises: UsageError for an unknown one."""
    wanted = list(suite.tasks) if tasks is None else [t.strip() for t in tasks.split(",") if t.strip()]
    for task in wanted:
        if task not in suite.tasks:
            raise unknown("task", task, suite.tasks, see=list_command(suite.name))
    return [t for t in suite.tasks if t in set(wanted)]


def without_targets(examples: SplitExamples) -> bool:
    """True where every target of the split is blank, as in a published test file."""
    used = np.concatenate([np.zeros(0, np.int64), *examples.by_task.values()])
    return len(used) > 0 and not has_target(examples.dataset.select(used)).any()


@dataclass(frozen=True, kw_only=True)
class LocatedData:
    """Where the examples are read from, pinned to what it holds now, and what identifies them.

    suite: the suite with the tasks of these data, see ``Suite.at``.
    """

    source: str
    spec: DataSpec
    suite: Suite


def _label(given: str) -> str:
    """The name of a folder or file, also of ``.``; a data set on the hub as it was typed."""
    path = Path(given).expanduser()
    return (path.resolve().name or given) if path.exists() else given


def locate_data(suite: Suite, given: str | None) -> LocatedData:
    """Find the data of a run.

    Args: given: as typed; None for the embedded sample.
    Raises: UsageError without data; DataError if the source is not there, or the suite does not identify it.
    """
    if given is None:
        if suite.sample is None:
            raise UsageError(f"--data is missing: suite {suite.name!r} has no embedded sample")
        source, label = str(suite.sample), suite.name if suite.sample_is_benchmark else "sample"
    else:
        source, label = given, _label(given)
    source = suite.pin(source)
    suite = suite.at(source)
    parts = dict(suite.fingerprint(source))
    if not parts:
        raise DataError(
            f"{source}: suite {suite.name!r} has an empty fingerprint for these data. "
            f"{type(suite).__name__}.fingerprint must return a hash or a revision, so that other data make another run"
        )
    spec = DataSpec(label=label, sample=given is None, fingerprints=parts)
    return LocatedData(source=source, spec=spec, suite=suite)
