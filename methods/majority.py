"""A task's most frequent train target, whatever the prompt: the floor of tasks with few labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.method import Method, Trait
from harness.task import Example


@dataclass(frozen=True, kw_only=True)
class Majority(Method):
    """Answers without a model. Of equally frequent targets the first in code-point order; "" without train examples."""

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.ANSWERS})
    summary: ClassVar[str] = "the most frequent answer of each task"

    def answer(self, task: str, prompts: Sequence[Example], train: Sequence[Example]) -> Sequence[str]:
        counts = Counter(example.target for example in train)
        most = min(counts, key=lambda target: (-counts[target], target), default="")
        return [most] * len(prompts)
