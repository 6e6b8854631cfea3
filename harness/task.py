"""What a task is: examples, protocols that score them, and the suite that reads them.

A protocol turns texts into answers and answers into per-example statistics, whose *sums over examples* are all that
its metrics need. That makes every bootstrap one matrix product (see ``harness.stats``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets import Dataset


Floats = NDArray[np.float64]


Answer = Any  # what a protocol's parser makes of a text: a label, a list of items, sections, or NOT_PARSED


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One question of a task with its gold text. ``choices`` are the options that the prompt offers, where it does."""

    id: str
    task: str
    prompt: str
    target: str
    choices: tuple[str, ...] | None = None


class NotParsed:
    """The answer of a text that does not have the task's answer format. Use the one instance ``NOT_PARSED``."""

    def __repr__(self) -> str:
        return "NOT_PARSED"

    def __bool__(self) -> bool:
        return False


NOT_PARSED: Final = NotParsed()


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Per-example statistics of one task under one protocol.

    rows: float64 (n, k), additive over examples: metrics are functions of column sums alone.
    values: column sums (..., k) -> {metric name: array (...)}, each between 0 and 1, vectorised over leading axes.
    """

    rows: Floats
    values: Callable[[Floats], Mapping[str, Floats]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Protocol:
    """A named scoring rule.

    parse: (text, example) -> answer; total (never raises, any text) and linear in the text's length.
    statistics: (gold answers, predicted answers) -> Statistics; NOT_PARSED may occur among the predicted answers.
    headline: the one metric, a key of ``Statistics.values``, that a leaderboard shows.
    """

    parse: Callable[[str, Example], Answer]
    statistics: Callable[[Sequence[Answer], Sequence[Answer]], Statistics]
    headline: str


MIN_EXAMPLES: Final = 50  # a mean over tasks leaves out tasks with fewer test examples, except on embedded samples


@dataclass(frozen=True, kw_only=True)
class ParameterLimit:
    """A benchmark's rule on the size of an adapter.

    percent: the most parameters that an adapter may store, in percent of the base model's. source: who sets the rule.
    """

    percent: float
    source: str


Diagnostics = Mapping[str, Any]  # JSON values: confusion matrix, entity F1 on the sentence, ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One kind of question.

    kind: what sort of task it is ("ner", "label", ...), the prior for clusters.
    protocols: by name, the official one first.
    one_label: answers are right or wrong as a whole, so that two methods can be compared by McNemar's test.
    invented: (answer, example) -> True where the answer holds a label that the example does not offer; None where
        the task has no closed set of labels.
    diagnose: (examples, predicted texts) -> figures shown beside the scores, never ranked.
    """

    name: str
    version: int
    kind: str
    protocols: Mapping[str, Protocol]
    one_label: bool = False
    invented: Callable[[Answer, Example], bool] | None = None
    diagnose: Callable[[Sequence[Example], Sequence[str]], Diagnostics] | None = None


@dataclass(frozen=True, kw_only=True)
class Suite(ABC):
    """A set of tasks read from one source. A frozen dataclass: its fields are its options (``suite.<field>`` keys)."""

    name: ClassVar[str]
    version: ClassVar[int]
    parameter_limit: ClassVar[ParameterLimit | None] = None  # leaderboards show whether each method keeps to it

    @property
    @abstractmethod
    def tasks(self) -> Mapping[str, Task]:
        """Every task by name, in the order in which tables show them."""

    @abstractmethod
    def read(self, source: str, split: str) -> Dataset:
        """Read one split of a folder, a file or a hub data set.

        Returns: a datasets.Dataset with columns id, task, prompt, target (str) and choices (list[str] or None), in the
            source's order. Targets are "" where the source withholds them (a published test set).
        Raises: DataError naming file, line, value and remedy.
        """

    def splits(self, source: str) -> Sequence[str]:
        """The splits that the source has, of "train", "dev", "test"."""
        return ("train", "dev", "test")

    def files(self, source: str) -> Sequence[Path]:
        """The local files that the source is made of, for fingerprints; empty for a hub data set."""
        return ()

    def locate(self, source: str, split: str, ids: Iterable[str]) -> Mapping[str, str]:
        """Where examples stand, as "file:line" by id; ids that cannot be placed are left out."""
        return {}

    @property
    def sample(self) -> Path | None:
        """The embedded sample: the folder that stands in when no data are given; None where there is none."""
        return None

    def describe(self, source: str) -> Mapping[str, Any]:
        """What a record should keep of how the data were read (a split by content hash, kinds left out, ...)."""
        return {}


def to_example(row: Mapping[str, Any]) -> Example:
    """One row of ``Suite.read`` as an Example."""
    choices = row.get("choices")
    return Example(
        id=row["id"],
        task=row["task"],
        prompt=row["prompt"],
        target=row["target"],
        choices=None if choices is None else tuple(choices),
    )
