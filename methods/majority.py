"""The most frequent training target of a task, whatever the prompt: the baseline for tasks with few labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.method import Baseline
from harness.task import Example


@dataclass(frozen=True, kw_only=True)
class Majority(Baseline):
    """Of equally frequent targets the first in code-point order; "" for a task without training examples."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "the most frequent training target of each task"

    def predict(self, examples: Sequence[Example], train: Sequence[Example]) -> Sequence[str]:
        counts = Counter(example.target for example in train)
        most = min(counts, key=lambda target: (-counts[target], target), default="")
        return [most] * len(examples)
