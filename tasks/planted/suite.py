"""The planted suite: synthetic tasks whose relations are known by construction, to test the harness itself.

The families (the kinds of the tasks):

- contradicting: ``pick-first`` and ``pick-last`` have the same prompts, without the task's name, and never the same
  answer
- related: ``class-stated``, ``class-asked`` and ``class-rare`` ask for one table of 24 things in three wordings; the
  rare task has 8 training examples, about things that do not occur in its dev and test examples
- grades: ``grade-table`` asks for a table of other things with other answers
- saying: ``say-twice`` repeats two words

What a right harness must find:

- **Contradiction.** A model that does not read the task gives one answer to each prompt of the pair, so that its
  accuracies on the two tasks add up to 100 % at most. A method with parts of each task can reach 200 %.
- **Help.** Training on the rare task alone says nothing about the things it is tested on, so that a model without a
  prior gets 25 %. The table is in the training examples of the two related tasks.
- **Where the repair comes from.** A mixture whose only parts of each task are its gates is one shared LoRA once the
  gates are uniform, and the bound of the pair then holds for it. Experts of each task repair the pair without a gate.
- **Nothing.** The same method under two sets of seeds does not differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import DataError
from harness.task import SPLITS, Example, Suite, Task
from tasks.planted.examples import N_DEV, N_TEST, N_TRAIN, draw_examples
from tasks.planted.tasks import TASKS

if TYPE_CHECKING:
    from datasets import Dataset

HERE = Path(__file__).parent
_COLUMNS = ("id", "task", "prompt", "target", "choices")


@dataclass(frozen=True, kw_only=True)
class Planted(Suite):
    """Tasks that help, contradict or ignore each other by construction.

    draw: the seed of the tables and prompts.
    """

    name: ClassVar[str] = "planted"
    version: ClassVar[int] = 1
    default_model: ClassVar[str | None] = "tiny"
    sample_is_benchmark: ClassVar[bool] = True
    publish_predictions: ClassVar[bool] = True  # The texts are made here.

    draw: int = 0

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The seven tasks, by family."""
        return TASKS

    def read(self, source: str, split: str) -> Dataset:
        """The examples of ``train``, ``dev`` or ``test``. Raises: DataError for another split or source."""
        from datasets import Dataset, Features, List, Value

        texts = {name: Value("string") for name in ("id", "task", "prompt", "target")}
        columns = [{**_columns(e), "choices": e.choices and list(e.choices)} for e in self._examples(source, split)]
        return Dataset.from_list(columns, features=Features({**texts, "choices": List(Value("string"))}))

    def pin(self, source: str) -> str:
        """The source unchanged. Raises: DataError for any other source than the suite's own examples."""
        if Path(source) != HERE:
            raise DataError(f"{source}: suite {self.name!r} draws its own examples and reads no data. Leave --data out")
        return source

    def fingerprint(self, source: str) -> Mapping[str, str]:
        """The sha256 of the examples of each split."""
        return {
            split: hashlib.sha256(
                json.dumps([_columns(e) for e in self._examples(source, split)], sort_keys=True).encode()
            ).hexdigest()
            for split in SPLITS
        }

    @property
    def sample(self) -> Path:
        """A place for the examples, which are in no file."""
        return HERE

    def describe(self, source: str) -> Mapping[str, Any]:
        """Where the examples come from, and how many there are of each task."""
        return {"examples": "drawn from a seed", "train": dict(N_TRAIN), "dev": N_DEV, "test": N_TEST}

    def _examples(self, source: str, split: str) -> Sequence[Example]:
        self.pin(source)
        if split not in SPLITS:
            raise DataError(f"{source}: there is no split {split!r}. Choose from {', '.join(SPLITS)}")
        return [example for by_split in draw_examples(self.draw).values() for example in by_split[split]]


def _columns(example: Example) -> dict[str, Any]:
    """The fields that these examples have. They alone are hashed, so that new fields do not change a fingerprint."""
    return {name: getattr(example, name) for name in _COLUMNS}
