"""The Super-NaturalInstructions suite: task files with Tk-Instruct's prompts, splits and metrics."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from harness.errors import UsageError, unknown
from harness.hashing import file_sha256
from harness.task import SPLITS, Example, Suite, Task
from tasks.common.jsonl import build_dataset
from tasks.superni.encoding import Encoding
from tasks.superni.examples import Sizes, TaskReader, example_id
from tasks.superni.scoring import make_task
from tasks.superni.source import TaskList, choose, open_source
from tasks.superni.task_file import lines_of, read_task

if TYPE_CHECKING:
    from datasets import Dataset

_AT_LEAST: Final = {"n_train_tasks": 0, "n_test_tasks": 0, "n_train": 1, "n_dev": 1, "n_test": 1} | {
    "positive": 0,
    "negative": 0,
    "max_characters": 1,
}


@dataclass(frozen=True, kw_only=True)
class SuperNI(Suite):
    """Super-NaturalInstructions from a copy of natural-instructions, a folder of its task files, or one file.

    only: the names of the tasks to use; by default those of the lists in splits/.
    split: the folder of the lists train_tasks.txt and test_tasks.txt in splits/. Tasks of the second list are held out:
        they have test examples and no others. Where there are no lists, every task is trained on.
    n_train_tasks: how many tasks are drawn from train_tasks.txt; none for all.
    n_test_tasks: how many tasks are drawn from test_tasks.txt; none for all.
    list_seed: the seed of that draw.
    n_train: the maximum number of training examples of a task; none for all that are left.
    n_dev: the maximum number of dev examples of a task, assigned by a hash of the input.
    n_test: the maximum number of test examples of a task, assigned by a hash of the input; those of a held-out task are
        its first instances.
    definition: whether prompts have the task's definition.
    positive: the maximum number of positive examples in a prompt.
    negative: the maximum number of negative examples in a prompt.
    explanation: whether these examples have their explanations.
    max_characters: examples are added while the prompt is not longer than this; none for no limit.
    reference_seed: the seed by which one of several references is chosen as the target of a training example.
    categories: the category of each task, which is found in the data.
    held_out: the held-out tasks, which are found in the data.
    """

    name: ClassVar[str] = "superni"
    version: ClassVar[int] = 1

    only: tuple[str, ...] = ()
    split: str = "default"
    n_train_tasks: int | None = None
    n_test_tasks: int | None = None
    list_seed: int = 0
    n_train: int | None = 100
    n_dev: int = 50
    n_test: int = 100
    definition: bool = True
    positive: int = 2
    negative: int = 0
    explanation: bool = False
    max_characters: int | None = 4096
    reference_seed: int = 0
    categories: Mapping[str, str] = field(default_factory=dict)
    held_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"suite.{name} = {value}: must be at least {least}")
        if self.n_train_tasks == 0 and self.n_test_tasks == 0:
            raise UsageError("suite.n_train_tasks = 0, suite.n_test_tasks = 0: no task is left. Raise one of them")
        if self.only and (self.n_train_tasks, self.n_test_tasks) != (None, None):
            raise UsageError("suite.only names the tasks, so that none is drawn: leave out suite.n_…_tasks")

    def at(self, source: str) -> SuperNI:
        """The suite with the tasks of a source, its categories and its held-out tasks."""
        if self.categories:
            return self
        wanted = TaskList(
            only=self.only,
            split=self.split,
            n_train_tasks=self.n_train_tasks,
            n_test_tasks=self.n_test_tasks,
            seed=self.list_seed,
        )
        chosen = choose(source, wanted)
        return dataclasses.replace(self, categories=chosen.categories, held_out=chosen.held_out)

    @cached_property
    def _tasks(self) -> Mapping[str, Task]:
        held_out = set(self.held_out)
        return {name: make_task(name, kind, held_out=name in held_out) for name, kind in self.categories.items()}

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks that were found in the data, training tasks first; none before ``at``."""
        return self._tasks

    def splits(self, source: str) -> Sequence[str]:
        """All splits, or test if every task is held out."""
        return ("test",) if set(self.categories) == set(self.held_out) else SPLITS

    def files(self, source: str) -> Sequence[Path]:
        """The files of the tasks. Raises: DataError if one is missing."""
        return list(self._files(source).values())

    def fingerprint(self, source: str) -> Mapping[str, str]:
        """One sha256 of the names and contents of all task files, of which there may be hundreds."""
        content = "".join(f"{name} {file_sha256(path)}\n" for name, path in self._files(source).items())
        return {"task_files": hashlib.sha256(content.encode()).hexdigest()}

    def read(self, source: str, split: str) -> Dataset:
        """Read ``train``, ``dev`` or ``test`` of every task; see ``Suite.read``.

        Raises: DataError with file, key and value; UsageError for another split.
        """
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        files = self._files(source)
        return build_dataset(
            lambda: self._examples(files, split),
            reader=self.name,
            version=self.version,
            files=list(files.values()),
            options={"suite": dataclasses.asdict(self), "split": split},
        )

    def locate(self, source: str, split: str, ids: Iterable[str]) -> Mapping[str, str]:
        """File and line of examples by id, from one pass over the files."""
        wanted = set(ids)
        found: dict[str, str] = {}
        for name, path in self._files(source).items() if wanted else ():
            instances = {i.id: example_id(name, i.id) for i in read_task(path).instances}
            here = [instance for instance, id_ in instances.items() if id_ in wanted]
            found |= {instances[id_]: f"{path}:{line}" for id_, line in lines_of(path, here).items()}
        return found

    @property
    def sample(self) -> Path | None:
        """The folder of the embedded sample."""
        folder = Path(__file__).parents[1] / "sample" / self.name
        return folder if folder.is_dir() else None

    def describe(self, source: str) -> Mapping[str, Any]:
        """How the examples of each split were chosen."""
        return {
            "held_out": list(self.held_out),
            "split": "by sha256 of the input, equal inputs once; of held-out tasks the first instances",
            "examples": {"train": self.n_train, "dev": self.n_dev, "test": self.n_test},
        }

    def _files(self, source: str) -> Mapping[str, Path]:
        present = open_source(source).files
        for name in self.categories:
            if name not in present:
                raise unknown(f"task of {source}", name, present)
        return {name: present[name] for name in self.categories}

    def _examples(self, files: Mapping[str, Path], split: str) -> Iterator[Example]:
        encoding = Encoding(
            definition=self.definition,
            positive=self.positive,
            negative=self.negative,
            explanation=self.explanation,
            max_characters=self.max_characters,
        )
        sizes = Sizes(train=self.n_train, dev=self.n_dev, test=self.n_test)
        held_out = set(self.held_out)
        for name, path in files.items():
            if name in held_out and split != "test":
                continue
            reader = TaskReader(
                name=name,
                held_out=name in held_out,
                encoding=encoding,
                sizes=sizes,
                reference_seed=self.reference_seed,
            )
            yield from reader.examples(read_task(path), split)
