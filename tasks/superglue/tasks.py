"""The eight tasks, in the order of the benchmark's table.

The protocol ``official`` has the benchmark's score of each task as its headline. ``accuracy`` has the share of correct
answers (ReCoRD: exact match), which is what C-Poly's authors measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from harness.errors import unknown
from harness.task import Answer, Example, Protocol, Statistics, Task
from tasks.common.metrics import parsed_label_statistics
from tasks.superglue import statistics
from tasks.superglue.answers import parse_entity, parse_label, parse_lettered_entity, parse_noun, parse_verdict
from tasks.superglue.prompts import FORMATS

Parse = Callable[[str, Example], Answer]
Compute = Callable[[Sequence[Answer], Sequence[Answer]], Statistics]


@cache
def tasks_of(form: str) -> Mapping[str, Task]:
    """The tasks of a format, by name. Formats differ in how answers are parsed, not in the metrics.

    Raises: UsageError for an unknown format.
    """
    if form not in FORMATS:
        raise unknown("prompt format of superglue", form, FORMATS)
    parse_record = parse_lettered_entity if form == "letters" else parse_entity
    parse_wsc = parse_noun if form == "t5" else parse_label
    tasks = (
        _labels("boolq", "reading"),
        _task("cb", "entailment", parse_label, statistics.commitment, ("acc_and_f1", "accuracy"), one_label=True),
        _labels("copa", "commonsense"),
        _task("multirc", "reading", parse_verdict, statistics.verdicts, ("f1a_and_em", "accuracy")),
        _task("record", "reading", parse_record, statistics.entities, ("f1_and_em", "em")),
        _labels("rte", "entailment"),
        _labels("wic", "word_sense"),
        _labels("wsc", "coreference", parse_wsc),
    )
    return {task.name: task for task in tasks}


def _labels(name: str, kind: str, parse: Parse = parse_label) -> Task:
    return _task(name, kind, parse, parsed_label_statistics, ("accuracy", "accuracy"), one_label=True)


def _task(
    name: str, kind: str, parse: Parse, compute: Compute, headlines: tuple[str, str], *, one_label: bool = False
) -> Task:
    rules = {
        protocol: Protocol(parse=parse, statistics=compute, headline=headline)
        for protocol, headline in zip(("official", "accuracy"), headlines, strict=True)
    }
    return Task(name=name, version=1, kind=kind, one_label=one_label, protocols=rules)
