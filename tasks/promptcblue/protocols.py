"""The three protocols of each type of task: official, readme and jieba.

``official`` reproduces the released scorer. ``readme`` follows the benchmark's documentation. ``jieba`` is what scripts
of the ChatGLM family report: ROUGE on jieba's words, micro F1 for CHIP-CTC, and otherwise the same as ``readme``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.task import NOT_PARSED, Answer, Example, Protocol, Statistics
from tasks.common.metrics import label_statistics, rouge_statistics, set_statistics
from tasks.common.rouge import Tokens
from tasks.common.tokens import characters, words
from tasks.promptcblue import parsers_official as official
from tasks.promptcblue import parsers_readme as readme
from tasks.promptcblue.answers import HEADINGS, Outside, Sections

Parse = Callable[[str, Example], Answer]
Tokenize = Callable[[str], Tokens]


def items(official_parse: Parse, readme_parse: Parse) -> Mapping[str, Protocol]:
    """Protocols of extraction tasks: strict micro F1 over sets of items; an unparsed prediction has no items."""
    described = Protocol(parse=readme_parse, statistics=_item_statistics, headline="f1", items=_items_of)
    return {
        "official": Protocol(parse=official_parse, statistics=_item_statistics, headline="f1", items=_items_of),
        "readme": described,
        "jieba": described,
    }


def micro_label(labels: tuple[str, ...], official_parse: Parse = official.label) -> Mapping[str, Protocol]:
    """Protocols of label tasks whose metric is micro F1 according to the documentation.

    Quirk of the released scorer: it names the metric micro, but computes scikit-learn's weighted average.
    """
    described = Protocol(parse=readme.label(labels), statistics=_readme_labels, headline="micro_f1")
    return {
        "official": Protocol(parse=official_parse, statistics=_official_labels(labels), headline="weighted_f1"),
        "readme": described,
        "jieba": described,
    }


def macro_label(labels: tuple[str, ...], jieba_headline: str = "macro_f1") -> Mapping[str, Protocol]:
    """Protocols of label tasks whose metric is macro F1."""
    described = Protocol(parse=readme.label(labels), statistics=_readme_labels, headline="macro_f1")
    return {
        "official": Protocol(parse=official.label, statistics=_official_labels(labels), headline="macro_f1"),
        "readme": described,
        "jieba": Protocol(parse=described.parse, statistics=_readme_labels, headline=jieba_headline),
    }


def replies() -> Mapping[str, Protocol]:
    """Protocols of a task whose answer is a text: ROUGE-L."""
    return {
        "official": Protocol(parse=official.reply, statistics=_official_replies, headline="rouge_l"),
        "readme": Protocol(parse=readme.reply, statistics=_readme_replies(characters), headline="rouge_l"),
        "jieba": Protocol(parse=readme.reply, statistics=_readme_replies(words), headline="rouge_l"),
    }


def reports() -> Mapping[str, Protocol]:
    """Protocols of a task whose answer is a text in sections: mean ROUGE-L of the sections."""
    return {
        "official": Protocol(parse=official.report, statistics=_official_reports, headline="rouge_l"),
        "readme": Protocol(parse=readme.report, statistics=_readme_reports(characters), headline="rouge_l"),
        "jieba": Protocol(parse=readme.report, statistics=_readme_reports(words), headline="rouge_l"),
    }


def _item_statistics(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    return set_statistics([_items_of(g) for g in golds], [_items_of(a) for a in answers])


def _items_of(answer: Answer) -> frozenset[Any]:
    return frozenset(answer or ())


def _official_labels(labels: tuple[str, ...]) -> Callable[[Sequence[Answer], Sequence[Answer]], Statistics]:
    """Quirk: an empty prediction is taken for the first label of the list, and is correct if that is the gold label."""

    def statistics(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
        return label_statistics([g or "" for g in golds], [a or labels[0] for a in answers])

    return statistics


def _readme_labels(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    gold_labels = [g.text if isinstance(g, Outside) else g or "" for g in golds]
    return label_statistics(gold_labels, [a if isinstance(a, str) else None for a in answers])


def _official_replies(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """Quirk: an empty text, gold or predicted, counts as the two tokens of ``tokens.NOTHING``."""
    return rouge_statistics([[characters(g or "")] for g in golds], [[characters(a or "")] for a in answers])


def _readme_replies(tokenize: Tokenize) -> Callable[[Sequence[Answer], Sequence[Answer]], Statistics]:
    def statistics(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
        return rouge_statistics([[tokenize(g or "")] for g in golds], [[tokenize(a) if a else ()] for a in answers])

    return statistics


def _official_reports(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """Quirk: only the sections of the target count, and the mean is over sections, not over reports."""
    sections: list[Sections] = [g or {} for g in golds]
    return rouge_statistics(
        [[characters(text) for text in gold.values()] for gold in sections],
        [[characters((a or {}).get(h, "")) for h in gold] for a, gold in zip(answers, sections, strict=True)],
    )


def _readme_reports(tokenize: Tokenize) -> Callable[[Sequence[Answer], Sequence[Answer]], Statistics]:
    """All six sections of each report. A section that is empty in both scores 1; an unparsed prediction scores 0."""

    def tokens(sections: Sections) -> list[Tokens]:
        return [tokenize(sections.get(heading, "")) for heading in HEADINGS]

    def statistics(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
        return rouge_statistics(
            [tokens(g or {}) for g in golds],
            [[()] * len(HEADINGS) if a is NOT_PARSED else tokens(a) for a in answers],
        )

    return statistics
