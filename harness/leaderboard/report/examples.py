"""The examples of a table with the predictions of every run: one block for each task, and what fits into the file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.errors import DataError, StoreError
from harness.leaderboard.report.answers import ItemTable, JudgedText, gold_forms, judge_texts
from harness.leaderboard.tables import Table
from harness.pipeline.reopen import RunData, data_at, request_of_run
from harness.scoring.groups import ScoredRun
from harness.scoring.score import match
from harness.seeding import stable_seed
from harness.store.record import Prediction
from harness.task import Example, Task

LOG: Final = logging.getLogger(__name__)
Json = Any
_DROPPED: Final = ("prompts", "targets", "choices", "texts")  # An example that is not kept lacks them.


@dataclass(frozen=True, kw_only=True)
class TaskBlock:
    """The examples of one task as JSON values. order: the indices of its examples, the ones to keep first."""

    task: str
    content: dict[str, Json]
    order: tuple[int, ...]

    def keep(self, n: int) -> dict[str, Json]:
        """The content with the texts of the first n examples of ``order``; scores and outcomes are those of all."""
        kept = set(self.order[:n])
        content = dict(self.content)
        for name in _DROPPED:
            content[name] = [value if i in kept else None for i, value in enumerate(content[name])]
        for name in ("gold", "forms"):
            content[name] = [[v if i in kept else None for i, v in enumerate(of_one)] for of_one in content[name]]
        return content | {"kept": len(kept)}


@dataclass(frozen=True, kw_only=True)
class TableExamples:
    """The blocks of a table's tasks. reason: why there are none. left_out: runs without predictions, with reasons."""

    blocks: tuple[TaskBlock, ...]
    reason: str | None
    left_out: tuple[str, ...] = ()


def table_examples(table: Table, data: str | None) -> TableExamples:
    """Read the examples of a table, and the predictions of all its runs.

    Args: data: the current location of the data, if they have moved.
    """
    runs = [run for row in table.rows for run in row.group.runs]
    try:
        found = _data(runs, data)
    except (DataError, StoreError) as error:
        LOG.warning("the report has no examples: %s", error)
        return TableExamples(blocks=(), reason=str(error))
    predictions, left_out = [], []
    for run in runs:
        try:
            predictions.append(run.directory.predictions(table.tasks))
        except StoreError as error:
            left_out.append(str(error))
            predictions.append({})
    for reason in left_out:
        LOG.warning("%s", reason)
    blocks = []
    for task in (t for t in table.tasks if t in found.evaluated.by_task):
        examples = found.evaluated.of(task)
        known = {e.id for e in examples}
        given = [[p for p in of_run.get(task, ()) if p.id in known] for of_run in predictions]
        matched = [match(task, examples, of_run) for of_run in given]
        blocks.append(make_block(found.suite.tasks[task], examples, matched))
    return TableExamples(blocks=tuple(blocks), reason=None, left_out=tuple(left_out))


def make_block(
    task: Task, examples: Sequence[Example], predictions: Sequence[Sequence[Prediction | None]]
) -> TaskBlock:
    """One task. predictions: for each run, those of the examples; each different text of an example is judged once."""
    texts = [_different([of_run[i] for of_run in predictions]) for i in range(len(examples))]
    pairs = [(i, text) for i, of_example in enumerate(texts) for text, _ in of_example]
    items = ItemTable()
    gold = gold_forms(task, examples, items)
    judged = judge_texts(task, [examples[i] for i, _ in pairs], [text for _, text in pairs], items)
    by_example = {name: _by_example(found, texts) for name, found in judged.items()}
    parsers = list(dict.fromkeys((rule.parse, rule.items) for rule in task.protocols.values()))
    first = [next(n for n, r in task.protocols.items() if (r.parse, r.items) == parser) for parser in parsers]
    content: dict[str, Json] = {
        "task": task.name,
        "one_label": task.one_label,
        "protocols": [
            {"name": name, "headline": rule.headline, "parser": parsers.index((rule.parse, rule.items))}
            for name, rule in task.protocols.items()
        ],
        "ids": [e.id for e in examples],
        "prompts": [e.prompt for e in examples],
        "targets": [e.target for e in examples],
        "choices": [None if e.choices is None else list(e.choices) for e in examples],
        "texts": [[text for text, _ in of_example] for of_example in texts],
        "tokens": [[facts[1] for _, facts in of_example] for of_example in texts],
        "truncated": [[int(bool(facts[0])) for _, facts in of_example] for of_example in texts],
        "lengths": [[len(text) for text, _ in of_example] for of_example in texts],
        "predictions": [_which([of_run[i] for of_run in predictions], texts[i]) for i in range(len(examples))],
        "scores": [[[j.score for j in of_example] for of_example in by_example[name]] for name in task.protocols],
        "correct": [[_bits([j.correct for j in of]) for of in by_example[name]] for name in task.protocols],
        "unparsed": [[_bits([j.form is None for j in of]) for of in by_example[name]] for name in first],
        "gold": [gold[name] for name in first],
        "forms": [[[j.form for j in of_example] for of_example in by_example[name]] for name in first],
        "items": items.items,
    }
    return TaskBlock(task=task.name, content=content, order=_order(task.name, content))


def _data(runs: Sequence[ScoredRun], data: str | None) -> RunData:
    """The evaluated examples, which all runs of a table have in common: of the first run whose data are known."""
    first = runs[0].directory
    if data is None:
        with_inputs = next((run.directory for run in runs if run.directory.inputs.exists()), None)
        if with_inputs is not None:
            first, data = with_inputs, request_of_run(with_inputs).options.get("data")
        elif not runs[0].record.spec.data.sample:
            raise DataError("published records do not include the data: give them with --data")
    return data_at(first, data)


def _different(predictions: Sequence[Prediction | None]) -> list[tuple[str, tuple[bool | None, int | None]]]:
    """The different texts for one example, each with whether it was truncated and its number of tokens."""
    return list(dict.fromkeys((p.text, (p.cut, p.tokens)) for p in predictions if p is not None))


def _which(
    predictions: Sequence[Prediction | None], texts: Sequence[tuple[str, tuple[bool | None, int | None]]]
) -> list[int]:
    """For each run the index of its text; -1 without a prediction."""
    index = {text: i for i, text in enumerate(texts)}
    return [-1 if p is None else index[p.text, (p.cut, p.tokens)] for p in predictions]


def _by_example(judged: Sequence[JudgedText], texts: Sequence[Sequence[Any]]) -> list[list[JudgedText]]:
    rest = iter(judged)
    return [[next(rest) for _ in of_example] for of_example in texts]


def _bits(flags: Sequence[bool]) -> str:
    return "".join("1" if flag else "0" for flag in flags)


def _order(task: str, content: Mapping[str, Json]) -> tuple[int, ...]:
    """First the examples on which runs differ, since they are what a comparison is about; otherwise by a fixed hash."""

    def key(i: int) -> tuple[bool, int]:
        correct = content["correct"][0][i]
        outcomes = {correct[p] for p in content["predictions"][i] if p >= 0}
        return len(outcomes) < 2, stable_seed("report", task, content["ids"][i])

    return tuple(sorted(range(len(content["ids"])), key=key))
