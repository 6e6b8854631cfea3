"""One prompt for a finished run: the prediction that its evaluation would have made for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from harness.data.splits import SplitExamples
from harness.errors import UsageError, unknown
from harness.generation.requests import Generated, GenerationRequest
from harness.method import Baseline
from harness.pipeline.predict import generator
from harness.pipeline.prepare import train_examples
from harness.pipeline.reopen import ReopenedRun, load, reopen
from harness.registry import list_command
from harness.task import Example

LOG: Final = logging.getLogger(__name__)


def try_prompt(path: Path, task: str, prompt: str, data: str | None = None, model: str | None = None) -> str:
    """The run's prediction for a prompt: the task's folded adapter, and the run's prompt format, shots and limits.

    Args:
        path: the directory of a finished run.
        data, model: their current locations, if they have moved.

    Raises: UsageError for a task that the run does not have, or a blank prompt; errors of ``harness.pipeline.reopen``.
    """
    finished = reopen(path, data, model)
    tasks = list(finished.record.spec.suite.tasks)
    if task not in tasks:
        raise unknown("task", task, tasks, see=list_command(finished.record.spec.suite.name))
    if not prompt.strip():
        raise UsageError("the prompt is empty: give it on standard input, for example: harness try RUN --task T < FILE")
    if finished.resolved.suite.tasks[task].answer == "choose":
        raise UsageError(
            f"{task} is answered by choosing among the choices of an example, which a prompt does not have: write the "
            "example into the data, and evaluate the run on them with harness evaluate"
        )
    example = Example(id="prompt", task=task, prompt=prompt, target="")
    train = train_examples(finished.resolved)
    if isinstance(finished.resolved.method, Baseline):
        rows = train.of(task) if train is not None else []
        return finished.resolved.method.predict([example], rows)[0]
    return _generate(finished, example, train)


def _generate(finished: ReopenedRun, example: Example, train: SplitExamples | None) -> str:
    prepared = load(finished.run, finished.resolved, train, example.task)
    encoder = prepared.encoder
    (prompt,) = encoder.prompts([example])
    request = GenerationRequest(
        id=example.id, task=example.task, prompt=prompt.tokens, limit=encoder.limit(example.task, prompt.tokens)
    )
    made: list[Generated] = []

    def keep(batch: Sequence[Generated]) -> None:
        made.extend(batch)

    generator(finished.resolved, prepared).run([request], keep)
    if prompt.truncated:
        LOG.warning(
            "the prompt was truncated to %d tokens: in-context examples or its middle were left out",
            encoder.room(example.task),
        )
    if made[0].truncated:
        LOG.warning("the prediction was truncated after %d tokens, the limit of the run's evaluation", request.limit)
    return encoder.texts([made[0].tokens])[0]
