"""The documents of lm-eval's tasks as examples, in lm-eval's own wording."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import TemplateError
from lm_eval.api.task import ConfigurableTask

from harness.errors import DataError
from harness.task import Example
from tasks.lm_eval_groups.definition import TaskDefinition, described

RULE: Final = "prompt-hash-1"  # raise the number when equal documents would be assigned to train or dev differently
# What lm-eval and the functions of its tasks raise for a document or a key that is not as they expect.
FAILURES: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TemplateError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True)
class TaskReader:
    """Reads the examples of one task. dev_share: of train, where the task has no split for dev."""

    name: str
    definition: TaskDefinition
    task: ConfigurableTask
    dev_share: float

    def examples(self, split: str) -> Iterator[Example]:
        """The examples of ``train``, ``dev`` or ``test``. Raises: DataError that names the task and the document."""
        splits = self.definition.splits
        own = {"train": splits.train, "dev": splits.dev or splits.train, "test": splits.test}[split]
        shared = splits.dev is None and split != "test"
        for i, document in enumerate(documents(self.task, own)):
            try:
                example = self._example(f"{self.name}-{own}-{i}", document)
            except FAILURES as error:
                raise DataError(
                    f"{self.name}: lm-eval cannot render document {i} of its split {own!r} "
                    f"({described(error)}). Correct the task's file or its data, or leave "
                    "the task out with --tasks"
                ) from error
            if not shared or (_position(example) < self.dev_share) == (split == "dev"):
                yield example

    def fingerprint(self) -> str:
        """The sha256 of the task's documents in every split that is read."""
        content = hashlib.sha256()
        splits = self.definition.splits
        for own in dict.fromkeys((splits.train, splits.dev, splits.test)):
            if own is not None:
                content.update(f"{own}\n".encode())
                for document in documents(self.task, own):
                    content.update(f"{to_text(document)}\n".encode())
        return content.hexdigest()

    def _example(self, id_: str, document: Mapping[str, Any]) -> Example:
        choices = None
        if self.definition.chooses:
            choices = tuple(f"{self.definition.delimiter}{c}" for c in self.task.doc_to_choice(document))
        return Example(
            id=id_,
            task=self.name,
            prompt=prompt_of(self.task, document),
            target=target_of(self.task, document, self.definition.delimiter),
            choices=choices,
            document=to_text(document),
        )


def documents(task: ConfigurableTask, split: str) -> Iterable[Mapping[str, Any]]:
    """The documents of one of the data set's splits, as ``process_docs`` changes them."""
    found = task.dataset[split]
    processed: Iterable[Mapping[str, Any]] = (
        found if task.config.process_docs is None else task.config.process_docs(found)
    )
    return processed


def prompt_of(task: ConfigurableTask, document: Mapping[str, Any]) -> str:
    """The context without in-context examples: description, question and the prefix of the answer."""
    return str(task.fewshot_context(document, num_fewshot=0, gen_prefix=task.doc_to_prefix(document)))


def target_of(task: ConfigurableTask, document: Mapping[str, Any], delimiter: str) -> str:
    """The first right answer after the delimiter; "" if the source withholds it."""
    gold = task.doc_to_target(document)
    if isinstance(gold, list):
        gold = gold[0] if gold else None
    if task.config.doc_to_choice is not None:
        gold = _choice(gold, task.doc_to_choice(document))
    return "" if gold is None or not str(gold).strip() else f"{delimiter}{gold}"


def _choice(gold: Any, choices: Sequence[str]) -> str | None:
    """The gold choice, which a task names by position or by text; None if it is withheld."""
    if isinstance(gold, int):
        return choices[gold] if 0 <= gold < len(choices) else None
    return gold if gold in choices else None


def to_text(document: Mapping[str, Any]) -> str:
    """A document as JSON text, equal for equal documents. Raises: TypeError for pictures, sound and dates."""
    return json.dumps(document, ensure_ascii=False, sort_keys=True)


def _position(example: Example) -> float:
    """A number in [0, 1) that depends on the prompt without white space."""
    digest = hashlib.sha256(f"{RULE} {''.join(example.prompt.split())}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64
