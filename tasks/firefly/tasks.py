"""Firefly's kinds in one table: the type of task, the parser and the metrics of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from harness.errors import unknown
from harness.task import NOT_PARSED, Answer, Diagnostics, Example, Protocol, Statistics, Task
from tasks.common.metrics import parsed_label_statistics
from tasks.firefly import statistics
from tasks.firefly.labels import is_invented, parse_label
from tasks.firefly.parsers import parse_entities, parse_keywords, parse_span, parse_text

# Firefly has no official scorer, so no protocol of it may be called official.
PROTOCOL: Final = "harness"
ALL: Final = "all"

CHECKABLE: Final = (
    "NLI",
    "SentimentAnalyze",
    "TextMatching",
    "NER",
    "KeywordRecognition",
    "MRC",
    "ClassicalChinese",
    "Couplet",
)
"""The kinds whose answers can be checked, which are the default."""

Parse = Callable[[str, Example], Answer]
ComputeStatistics = Callable[[Sequence[Answer], Sequence[Answer]], Statistics]


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """The requested kinds, in the table's order; "all" means Firefly's own 23, without BELLE.

    Raises: UsageError for an unknown kind.
    """
    wanted = set(names)
    for name in sorted(wanted - {ALL}):
        if name not in TASKS:
            raise unknown("Firefly kind", name, (*TASKS, ALL))
    if ALL in wanted:
        wanted |= {name for name in TASKS if name != "BELLE"}
    return tuple(name for name in TASKS if name in wanted)


def _label(name: str, version: int = 1) -> Task:
    parse = partial(parse_label, name)
    return Task(
        name=name,
        version=version,
        kind="label",
        one_label=True,
        protocols={PROTOCOL: Protocol(parse=parse, statistics=parsed_label_statistics, headline="macro_f1")},
        invented=partial(is_invented, name),
        diagnose=partial(_confusion, parse),
    )


def _task(name: str, kind: str, parse: Parse, compute: ComputeStatistics, headline: str, *, version: int = 1) -> Task:
    items = statistics.items_of if compute is statistics.sets else None
    protocol = Protocol(parse=parse, statistics=compute, headline=headline, items=items)
    return Task(name=name, version=version, kind=kind, protocols={PROTOCOL: protocol})


def _free_text(name: str, kind: str, version: int = 1) -> Task:
    return _task(name, kind, parse_text, statistics.free_text, "rouge_l", version=version)


def _confusion(parse: Parse, examples: Sequence[Example], predictions: Sequence[str]) -> Diagnostics:
    """The confusion matrix: {"confusion": {gold class: {predicted class or "not parsed": number of examples}}}."""
    table: dict[str, Counter[str]] = {}
    for example, prediction in zip(examples, predictions, strict=True):
        gold, answer = (
            "not parsed" if a is NOT_PARSED else a for a in (parse(example.target, example), parse(prediction, example))
        )
        table.setdefault(gold, Counter())[answer] += 1
    return {"confusion": {gold: dict(sorted(counts.items())) for gold, counts in sorted(table.items())}}


TASKS: Final[Mapping[str, Task]] = {
    task.name: task
    for task in (
        _label("NLI"),
        _label("SentimentAnalyze"),
        _label("TextMatching"),
        _task("NER", "ner", parse_entities, statistics.sets, "f1"),
        _task("KeywordRecognition", "keywords", parse_keywords, statistics.sets, "f1"),
        _task("MRC", "qa", parse_span, statistics.short_answers, "char_f1"),
        # A corrected text differs from its input in a character or two, so a metric of overlap would reward copying.
        _task("TextCorrection", "rewriting", parse_span, statistics.short_answers, "exact_match"),
        _free_text("ClassicalChinese", "rewriting"),
        _free_text("Translation", "rewriting"),
        _free_text("Summary", "rewriting"),
        _free_text("Couplet", "verse"),
        _free_text("AncientPoem", "verse"),
        _free_text("LyricGeneration", "verse"),
        _free_text("OpenQA", "knowledge"),
        _free_text("Dictionary", "knowledge"),
        _free_text("Cot", "reasoning"),
        _free_text("Program", "reasoning"),
        _free_text("Composition", "writing"),
        _free_text("StoryGeneration", "writing"),
        _free_text("ProseGeneration", "writing"),
        _free_text("JinYongGeneration", "writing"),
        _free_text("ProductDesc", "writing"),
        _free_text("MusicComment", "writing"),
        _free_text("BELLE", "instructions"),
    )
}
