"""The instances of a task as examples of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.seeding import stable_seed
from harness.task import Example
from tasks.superni.encoding import Encoding
from tasks.superni.task_file import Instance, TaskContent


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """At most this many examples of a task in each split. train: None for all that are left."""

    train: int | None
    dev: int
    test: int


@dataclass(frozen=True, kw_only=True)
class TaskReader:
    """Makes the examples of one task.

    held_out: the first instances are its test examples, and it has no others. reference_seed: of the reference that is
    the target of a training example.
    """

    name: str
    held_out: bool
    encoding: Encoding
    sizes: Sizes
    reference_seed: int

    def examples(self, task: TaskContent, split: str) -> Iterator[Example]:
        """The examples of a split, in the order of the file."""
        for instance in self._instances(task, split):
            outputs = instance.outputs
            chosen = stable_seed("reference", self.reference_seed, instance.id) % len(outputs) if outputs else 0
            target = outputs[chosen if split == "train" else 0].strip() if outputs else ""
            yield Example(
                id=example_id(self.name, instance.id),
                task=self.name,
                prompt=self.encoding.prompt(task, instance.input),
                target=target,
                references=outputs if len(outputs) > 1 else None,
            )

    def _instances(self, task: TaskContent, split: str) -> Sequence[Instance]:
        if self.held_out:
            return task.instances[: self.sizes.test] if split == "test" else ()
        printed = {_content(example.input) for example in self.encoding.positives(task)}
        return assigned(task.instances, split, self.sizes, printed)


def assigned(instances: Sequence[Instance], split: str, sizes: Sizes, printed: set[str]) -> list[Instance]:
    """The instances of a split: those whose inputs have the smallest hashes are for testing, the next ones for dev.

    Of equal inputs the first one is used. Testing takes at most a fifth of the instances and dev a tenth, so that small
    tasks keep examples for training.

    Args: printed: the contents of inputs whose answers the prompts print as examples: they are never in dev or test.
    """
    first = {_content(instance.input): instance for instance in reversed(instances)}
    hashes = {content: hashlib.sha256(content.encode()).digest() for content in first}
    ordered = [first[content] for content in sorted(first, key=lambda content: hashes[content])]
    free = [instance for instance in ordered if _content(instance.input) not in printed]
    n_test = min(sizes.test, len(free) // 5)
    n_dev = min(sizes.dev, len(free) // 10)
    evaluated = {instance.id for instance in free[: n_test + n_dev]}
    chosen = {
        "test": free[:n_test],
        "dev": free[n_test : n_test + n_dev],
        "train": [instance for instance in ordered if instance.id not in evaluated][: sizes.train],
    }[split]
    ids = {instance.id for instance in chosen}
    return [instance for instance in instances if instance.id in ids]


def example_id(task: str, instance: str) -> str:
    """The id of an instance, which usually begins with the number of its task, and is completed where it does not.

    Files that were derived from another task's may have that task's ids.
    """
    number = task.partition("_")[0]
    return instance if instance.startswith(f"{number}-") else f"{number}-{instance}"


def _content(text: str) -> str:
    """A text without white space, as texts are compared in ``harness validate``."""
    return "".join(text.split())
