"""Prompts in Tk-Instruct's encoding: a definition, positive and negative examples, and the instance."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.superni.task_file import Demonstration, TaskContent


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What a prompt has besides the instance's input.

    definition: the task's first definition. positive, negative: at most this many examples. explanation: with the
        explanation of each. max_characters: examples are added while the prompt has at most this many characters; None
        for no limit.
    """

    definition: bool
    positive: int
    negative: int
    explanation: bool
    max_characters: int | None

    def prompt(self, task: TaskContent, given: str) -> str:
        """The prompt of an instance. given: its input."""
        question = "Now complete the following example -\n" + _closed(f"Input: {given.strip()}") + "\nOutput: "
        text = _closed(f"Definition: {task.definition.strip()}") + "\n\n" if self.definition else ""
        for sign, examples in (
            ("Positive", self.positives(task)),
            ("Negative", task.negative[: self.negative]),
        ):
            for number, example in enumerate(examples, 1):
                longer = text + self._example(f" {sign} Example {number} -", example)
                if self.max_characters is not None and len(longer) + len(question) > self.max_characters:
                    break
                text = longer
        return text + question

    def positives(self, task: TaskContent) -> Sequence[Demonstration]:
        """The positive examples that a prompt can have."""
        return task.positive[: self.positive]

    def _example(self, head: str, example: Demonstration) -> str:
        lines = [head, _closed(f"Input: {example.input.strip()}"), _closed(f" Output: {example.output.strip()}")]
        if self.explanation and example.explanation is not None:
            lines.append(_closed(f" Explanation: {example.explanation.strip()}"))
        return "\n".join([*lines, "", ""])


def _closed(text: str) -> str:
    """The text with a full stop, unless it ends in punctuation."""
    return text if text[-1] in string.punctuation else text + "."
