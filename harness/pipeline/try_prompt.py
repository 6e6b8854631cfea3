"""One prompt to a finished run: what it would have answered in its evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.data.rows import Rows
from harness.errors import UsageError, unknown
from harness.generation.generator import Generated, Request
from harness.method import Baseline
from harness.pipeline.predict import generator
from harness.pipeline.prepare import train_rows
from harness.pipeline.reopen import Finished, find, load
from harness.task import Example


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An answer. notes: what a person should be told (a prompt without its middle, an answer that was cut)."""

    text: str
    notes: tuple[str, ...] = ()


def ask(path: Path, task: str, prompt: str, data: str | None = None, model: str | None = None) -> Asked:
    """Answer a prompt as the run would: the task's fold, the same prompt format, shots and limits.

    Args:
        path: of a finished run.
        data, model: where these are now, when they have moved.

    Raises: UsageError for a task that the run does not have or a blank prompt; errors of ``harness.reopen``.
    """
    finished = find(path, data, model)
    tasks = list(finished.record.spec.suite.tasks)
    if task not in tasks:
        raise unknown("task", task, tasks, see=f"harness list {finished.record.spec.suite.name}")
    if not prompt.strip():
        raise UsageError("the prompt is empty: give it on standard input, for example: harness try RUN --task T < FILE")
    example = Example(id="asked", task=task, prompt=prompt, target="")
    train = train_rows(finished.resolved)
    if isinstance(finished.resolved.method, Baseline):
        rows = train.of(task) if train is not None else []
        return Asked(text=finished.resolved.method.predict([example], rows)[0])
    return _generate(finished, example, train)


def _generate(finished: Finished, example: Example, train: Rows | None) -> Asked:
    prepared = load(finished.run, finished.resolved, train, example.task)
    route = list(prepared.tasks).index(example.task)
    encoder = prepared.encoder
    ((ids, cut),) = encoder.prompts([example])
    request = Request(id=example.id, route=route, prompt=ids, limit=encoder.limit(example.task, ids))
    made: list[Generated] = []

    def keep(batch: Sequence[Generated]) -> None:
        made.extend(batch)

    generator(finished.resolved, prepared).run([request], keep)
    notes = []
    if cut:
        notes.append(f"the prompt has room for {encoder.room(example.task)} tokens: it lost shots or its middle")
    if made[0].cut:
        notes.append(f"the answer was cut after {request.limit} tokens, as in the run's evaluation")
    text = encoder.tokenizer.decode(list(made[0].tokens), skip_special_tokens=True)
    return Asked(text=str(text), notes=tuple(notes))
