"""The contract for suites: examples, tasks, the protocols that score them, and the suite that reads them.

A protocol parses each prediction into an answer and computes *statistics* of the answers: a few numbers per unit whose
sums over units are all that its *metrics* (accuracy, F1, ...) need. A unit is one example, or all examples that come
from one text and are therefore not independent of each other. A metric of a resampled test set is then a function of
one matrix product, which makes the bootstrap fast (see ``harness.scoring.statistics``).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.hashing import file_sha256

if TYPE_CHECKING:
    from datasets import Dataset


Floats = NDArray[np.float64]


Answer = Any  # the parser's result: a label, a set of items, sections by heading, ... or NOT_PARSED


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One example of a task.

    target: the reference text; "" where the source withholds it.
    choices: the options that the prompt offers; None if it offers none. In a task that is answered by choosing, each is
        a continuation of the prompt, as the target is one (see ``Task.answer``).
    references: every right answer, where the source has several; None if ``target`` is the only one. A parser can put
        them into the gold answer, so that a metric can use the best one.
    group: examples of a task with the same group are scored together, such as the answers to one question that are
        right only as a whole. A limit on the number of examples keeps all examples of a group or none; None for an
        example that is scored by itself.
    document: what protocols need besides prompt, target and choices, as JSON text; None if they need nothing else. It
        may hold the answer, so that no method and no prompt gets it.
    """

    id: str
    task: str
    prompt: str
    target: str
    choices: tuple[str, ...] | None = None
    references: tuple[str, ...] | None = None
    group: str | None = None
    document: str | None = None

    @property
    def has_target(self) -> bool:
        """Whether the target is known. A blank target is never an answer: it is neither trained on nor scored."""
        return bool(self.target.strip())


@dataclass(frozen=True, kw_only=True, slots=True)
class UnlabelledExample:
    """One example of any file, with or without an answer there: what ``harness predict`` needs of it.

    place: "file, line 3", for errors.
    id: its number in the file if the file has no ids. task: None if the file does not name it.
    """

    place: str
    id: str
    task: str | None
    prompt: str


class NotParsed:
    """The type of ``NOT_PARSED``, the answer of a text that does not follow the task's format."""

    def __repr__(self) -> str:
        return "NOT_PARSED"

    def __bool__(self) -> bool:
        return False


NOT_PARSED: Final = NotParsed()


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Statistics of one task under one protocol, per unit.

    per_unit: float64 (n, k), one row of k statistics for each of n units; metrics depend only on column sums. The
        bootstrap, the deviations and the paired tests resample units, so units must be independent of each other: a
        unit is an example or, where several examples share a text, all of them together. The units and their order
        follow from the gold answers only, so that two sets of predictions have the same ones.
    values: the metrics, a function of column sums (..., k) that returns {metric name: array (...)}. Every metric is
        between 0 and 1, and the function is vectorised over the leading axes.
    """

    per_unit: Floats
    values: Callable[[Floats], Mapping[str, Floats]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Protocol:
    """A named scoring rule.

    parse: (text, example) -> answer, applied to targets and to predictions. It accepts any text, never raises, and
        takes time linear in the text's length.
    statistics: (gold answers, predicted answers) -> Statistics. Either may contain NOT_PARSED. Where a unit has several
        examples, the parser puts the unit's name into the answer (from the example's id or group), and the gold answers
        are grouped by it.
    headline: the metric, a key of what ``Statistics.values`` returns, that leaderboards show.
    items: an answer as the set that the metric compares with that of the gold answer, where it compares sets: entities,
        relations, names. NOT_PARSED has no items. Reports print which items are found, missing and spurious.
    """

    parse: Callable[[str, Example], Answer]
    statistics: Callable[[Sequence[Answer], Sequence[Answer]], Statistics]
    headline: str
    items: Callable[[Answer], frozenset[Any]] | None = None


SPLITS: Final = ("train", "dev", "test")

MIN_EXAMPLES: Final = 50
"""A mean over tasks leaves out tasks with fewer test examples (units, where these have several examples), except on
embedded samples."""


@dataclass(frozen=True, kw_only=True)
class ParameterLimit:
    """A benchmark's rule on the size of an adapter.

    percent: the maximum number of stored parameters, in percent of the base model's. source: who sets the rule.
    """

    percent: float
    source: str


Diagnostics = Mapping[str, Any]  # JSON values: confusion matrix, entity F1 on the sentence, ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One kind of question.

    version: raise it when the same predictions would be scored differently.
    kind: the type of task ("ner", "label", ...), by which ``--clusters kind`` groups tasks.
    protocols: scoring rules by name, the official one first.
    one_label: whether each answer is either right or wrong, so that McNemar's test can compare two methods where each
        example is a unit.
    invented: (answer, example) -> whether the answer has a label that the example does not offer; None if the task
        has no closed set of labels.
    diagnose: (examples, predictions) -> figures that are reported next to the scores and never ranked.
    answer: how a model answers: it generates a text, or it chooses, by the likelihood of each of the example's
        ``choices`` after the prompt. The prediction of a choice is the text of a ``harness.choosing.Choice``.
    """

    name: str
    version: int
    kind: str
    protocols: Mapping[str, Protocol]
    one_label: bool = False
    invented: Callable[[Answer, Example], bool] | None = None
    diagnose: Callable[[Sequence[Example], Sequence[str]], Diagnostics] | None = None
    answer: Literal["generate", "choose"] = "generate"


@dataclass(frozen=True, kw_only=True)
class FoundSuite:
    """A suite that an argument has named (``Suite.from_argument``).

    source: what is read where the user gives no data. notes: for the user, what of the argument is not in the suite.
    """

    suite: Suite
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Suite(ABC):
    """A set of tasks that are read from one source.

    Subclasses are frozen dataclasses. Their fields are the suite's options: ``--set suite.<field>=value``.

    name: the name that ``--suite`` accepts. version: raise it when equal files would be read as other examples.
    publish_predictions: whether the data's licence allows the predictions of a run to be published with its record,
        so that others can recompute its scores. Predictions repeat text of the data. If False, a record has 64-bit
        hashes of prompts, targets and predictions, from which a short answer such as a label can still be guessed. The
        predictions on the embedded sample are always published.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    default_model: ClassVar[str | None] = None
    """A registered model for first trials on the embedded sample, used where no model is given."""
    sample_is_benchmark: ClassVar[bool] = False
    """The embedded examples are the whole benchmark rather than a sample of one: methods are ranked on them."""
    parameter_limit: ClassVar[ParameterLimit | None] = None  # Leaderboards show which methods comply with it.
    publish_predictions: ClassVar[bool] = False
    other_tasks: ClassVar[frozenset[str]] = frozenset()
    """Tasks that published data also contain and that the suite does not have: their examples are left out."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Endings of the files that define a suite of this class, such as ".toml"; see ``from_file``."""

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """The suite that a file defines, for a class with ``reads``. Its data are by default in the file's folder.

        The fields of the result must hold everything that the file says about examples and scores, and no path: they
        are the suite's part of a run's identity, and a finished run is opened from its record without the file.

        Raises: UsageError that names the file, the key and the remedy.
        """
        raise NotImplementedError(f"{cls.__name__} reads no files")

    argument: ClassVar[str | None] = None
    """What follows the name and a colon in ``--suite NAME:…``, such as "GROUP"; see ``from_argument``."""
    argument_options: ClassVar[type | None] = None
    """A frozen dataclass with defaults: the ``suite.*`` keys of a suite with an argument."""

    @classmethod
    def from_argument(cls, argument: str, options: Any) -> FoundSuite:
        """The suite that an argument names, for a class with ``argument``. options: an ``argument_options``.

        As in ``from_file``, the fields of the suite must hold everything that examples and scores depend on, and no
        path.

        Raises: UsageError that names the argument or the key, and the remedy; DataError for data that are missing.
        """
        raise NotImplementedError(f"{cls.__name__} takes no argument")

    @classmethod
    def write_example(cls, folder: Path) -> None:
        """Write a file that ``from_file`` reads and its data into an empty folder, for ``harness new suite``."""
        raise NotImplementedError(f"{cls.__name__} reads no files")

    def at(self, source: str) -> Self:
        """The suite of these data, for a suite whose tasks depend on them; by default the suite itself.

        It is called once, with a pinned source, before anything else is asked about these data. As with ``from_file``,
        the fields of the result must hold the tasks, because a finished run is opened from its record. A suite that
        has been opened so is returned unchanged.

        Raises: DataError for a source that has no tasks; UsageError for options that do not fit it.
        """
        return self

    @property
    @abstractmethod
    def tasks(self) -> Mapping[str, Task]:
        """All tasks by name, in the order in which tables list them."""

    @abstractmethod
    def read(self, source: str, split: str) -> Dataset:
        """Read one split of a folder, a file or a data set on the Hugging Face Hub.

        Returns: a datasets.Dataset with the columns id, task, prompt, target (str) and, where they are needed, choices
            and references (list[str] or None), group and document (str or None; see ``Example``), in the source's
            order. Ids are unique within a split. Targets are "" where the source withholds them, as published test sets
            do, and where an answer is missing: such examples are not used for training or scoring. Examples of tasks
            that the suite does not have are returned too, with the task that the source names: they are an error,
            unless they are in ``other_tasks`` or the user has chosen tasks.
        Raises: DataError that names the file, the line, the value and the remedy.
        """

    def splits(self, source: str) -> Sequence[str]:
        """The splits that the source has, of "train", "dev", "test"."""
        return SPLITS

    def pin(self, source: str) -> str:
        """The same source, fixed to its present version.

        A run calls this once, when it starts, and passes the result to every other method. Override it for sources
        that can change under the same name: for a data set on the hub, return its name with the present commit.

        Raises: DataError if the source cannot be resolved.
        """
        return source

    def files(self, source: str) -> Sequence[Path]:
        """The local files of the source, which ``fingerprint`` hashes; empty for a data set on the hub."""
        return ()

    def fingerprint(self, source: str) -> Mapping[str, str]:
        """The identity of the examples: a hash or a revision for each part of the source.

        It is part of a run's identity: runs with different fingerprints have different run_ids. The default is the
        sha256 of each file of ``files``, by file name, or by path below the files' common folder where two files have
        the same name. Override it for a source without local files, and return the commit. Override it also where the
        examples depend on a rule, such as one that splits a single file, and add a short name of the rule with its
        parameters. Descriptions for people belong in ``describe``.

        Raises: DataError if the suite implements neither, or the source has no files.
        """
        files = self.files(source)
        if not files:
            raise DataError(
                f"{source}: suite {self.name!r} has no fingerprint for these data, because it finds no files there. "
                f"Check the path. If it is right, {type(self).__name__} must implement files(source), whose files are "
                "hashed, or, for data that are not local files, fingerprint(source), such as {'revision': commit}"
            )
        same_name = Counter(file.name for file in files)
        common = Path(os.path.commonpath([file.parent for file in files]))
        return {
            file.name if same_name[file.name] == 1 else file.relative_to(common).as_posix(): file_sha256(file)
            for file in files
        }

    def same_data(self, recorded: Mapping[str, str], present: Mapping[str, str]) -> bool:
        """Whether a run's recorded fingerprint and the present one identify the same examples.

        Override it when the form of ``fingerprint`` changes, so that earlier runs can still be scored.
        """
        return dict(recorded) == dict(present)

    def read_unlabelled(self, path: Path, task: str | None) -> Iterator[UnlabelledExample]:
        """The examples of any file in the suite's form, for ``harness predict``: answers may be missing.

        The file need not be a split of a source. The examples are read one at a time, in the order of the file, and
        none is left out, also not those of tasks that the suite does not have. Ids need not be unique.

        Args: task: what the user says the task of the examples is, for suites whose prompts depend on it.
        Raises: DataError, at the first example already if the file has another form.
        """
        raise NotImplementedError(f"{type(self).__name__} reads no single files")

    def submission(self, source: str, predictions: Mapping[str, str]) -> Mapping[str, bytes]:
        """The files of a submission to the benchmark's competition by name, for ``harness submit``.

        Args: predictions: by id, one for each example of the source's test split and no other; "" for the examples of
            tasks that the run does not have.
        Raises: DataError for a test split that is not in the competition's form.
        """
        raise NotImplementedError(f"{type(self).__name__} has no form of a submission")

    def locate(self, source: str, split: str, ids: Iterable[str]) -> Mapping[str, str]:
        """The place of examples in the source, as "file:line" by id; ids without a known place are left out."""
        return {}

    @property
    def sample(self) -> Path | None:
        """The folder of the embedded sample, which is used when ``--data`` is not given; None without a sample."""
        return None

    def describe(self, source: str) -> Mapping[str, Any]:
        """A description of how the data were read, for readers of the record; it is not part of the run's identity."""
        return {}


def to_example(columns: Mapping[str, Any]) -> Example:
    """One example of the data set that ``Suite.read`` returns, from its columns by name."""
    choices, references = columns.get("choices"), columns.get("references")
    return Example(
        id=columns["id"],
        task=columns["task"],
        prompt=columns["prompt"],
        target=columns["target"] or "",
        choices=None if choices is None else tuple(choices),
        references=None if references is None else tuple(references),
        group=columns.get("group"),
        document=columns.get("document"),
    )
