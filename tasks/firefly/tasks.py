"""The kinds of Firefly in one table: what sort of task each is, how its texts are read and what they are scored by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from harness.errors import unknown
from harness.task import NOT_PARSED, Answer, Diagnostics, Example, Protocol, Statistics, Task
from tasks.firefly import statistics as _scores
from tasks.firefly.labels import is_invented, parse_label
from tasks.firefly.parsers import parse_entities, parse_keywords, parse_span, parse_text

# Firefly has no official scorer, so no protocol of it may be called official.
PROTOCOL: Final = "harness"
VERSION: Final = 1
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
"""The kinds whose answers can be checked: the default."""

Parse = Callable[[str, Example], Answer]
Score = Callable[[Sequence[Answer], Sequence[Answer]], Statistics]


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """The kinds that were asked for, in the table's order; "all" stands for Firefly's own 23, not for BELLE.

    Raises: UsageError for a name that is no kind.
    """
    wanted = set(names)
    for name in sorted(wanted - {ALL}):
        if name not in TASKS:
            raise unknown("kind of Firefly", name, (*TASKS, ALL))
    if ALL in wanted:
        wanted |= {name for name in TASKS if name != "BELLE"}
    return tuple(name for name in TASKS if name in wanted)


def _label(name: str) -> Task:
    parse = partial(parse_label, name)
    return Task(
        name=name,
        version=VERSION,
        kind="label",
        one_label=True,
        protocols={PROTOCOL: Protocol(parse=parse, statistics=_scores.labels, headline="macro_f1")},
        invented=partial(is_invented, name),
        diagnose=partial(_confusion, parse),
    )


def _task(name: str, kind: str, parse: Parse, score: Score, headline: str) -> Task:
    protocol = Protocol(parse=parse, statistics=score, headline=headline)
    return Task(name=name, version=VERSION, kind=kind, protocols={PROTOCOL: protocol})


def _text(name: str, kind: str) -> Task:
    return _task(name, kind, parse_text, _scores.texts, "rouge_l")


def _confusion(parse: Parse, examples: Sequence[Example], texts: Sequence[str]) -> Diagnostics:
    """{"confusion": {gold class: {answered class or "not parsed": examples}}}."""
    table: dict[str, Counter[str]] = {}
    for example, text in zip(examples, texts, strict=True):
        gold, answer = (
            ("not parsed" if a is NOT_PARSED else a) for a in (parse(example.target, example), parse(text, example))
        )
        table.setdefault(gold, Counter())[answer] += 1
    return {"confusion": {gold: dict(sorted(row.items())) for gold, row in sorted(table.items())}}


TASKS: Final[Mapping[str, Task]] = {
    task.name: task
    for task in (
        _label("NLI"),
        _label("SentimentAnalyze"),
        _label("TextMatching"),
        _task("NER", "ner", parse_entities, _scores.sets, "f1"),
        _task("KeywordRecognition", "keywords", parse_keywords, _scores.sets, "f1"),
        _task("MRC", "qa", parse_span, _scores.spans, "char_f1"),
        # A corrected text differs from the faulty one in a character or two: any overlap rewards copying.
        _task("TextCorrection", "rewriting", parse_span, _scores.spans, "exact_match"),
        _text("ClassicalChinese", "rewriting"),
        _text("Translation", "rewriting"),
        _text("Summary", "rewriting"),
        _text("Couplet", "verse"),
        _text("AncientPoem", "verse"),
        _text("LyricGeneration", "verse"),
        _text("OpenQA", "knowledge"),
        _text("Dictionary", "knowledge"),
        _text("Cot", "reasoning"),
        _text("Program", "reasoning"),
        _text("Composition", "writing"),
        _text("StoryGeneration", "writing"),
        _text("ProseGeneration", "writing"),
        _text("JinYongGeneration", "writing"),
        _text("ProductDesc", "writing"),
        _text("MusicComment", "writing"),
        _text("BELLE", "instructions"),
    )
}
