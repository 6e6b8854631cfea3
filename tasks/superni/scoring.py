"""The metrics of Tk-Instruct: exact match, ROUGE-1 and ROUGE-L, each the best over all references."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from harness.task import NOT_PARSED, Answer, Example, NotParsed, Protocol, Statistics, Task
from tasks.common.english_rouge import english_rouge
from tasks.common.metrics import mean_statistics, where_golds_parse

TK: Final = "tk"
HELD_OUT: Final = "tk_held_out"
EXACT_MATCH: Final = "exact_match"
ROUGE_1: Final = "rouge1"
ROUGE_L: Final = "rougeL"
UNKNOWN_CATEGORY: Final = "Unknown"

# The categories whose answers are labels: Tk-Instruct reports exact match for them, and ROUGE-L for all others.
EXACT_CATEGORIES: Final = frozenset(
    {
        "Answerability Classification",
        "Cause Effect Classification",
        "Coreference Resolution",
        "Dialogue Act Recognition",
        "Textual Entailment",
        "Word Analogy",
    }
)
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextAnswer:
    """A text and the references of its example, which the metrics compare predictions with."""

    text: str
    references: tuple[str, ...]


def parse_text(text: str, example: Example) -> TextAnswer | NotParsed:
    """The whole text; a blank one is not parsed and is scored as the empty text."""
    if not text.strip():
        return NOT_PARSED
    return TextAnswer(text=text, references=example.references or (example.target,))


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, with single spaces. Articles stay."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def tk_statistics(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    """Mean exact match, ROUGE-1 and ROUGE-L, each the maximum over the references of an example."""
    return where_golds_parse(_best_over_references, golds, answers)


def _best_over_references(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    totals: dict[str, list[float]] = {EXACT_MATCH: [], ROUGE_1: [], ROUGE_L: []}
    for gold, answer in zip(golds, answers, strict=True):
        text = "" if answer is NOT_PARSED else answer.text
        rouges = [english_rouge(reference, text) for reference in gold.references]
        totals[EXACT_MATCH].append(float(normalised(text) in {normalised(r) for r in gold.references}))
        totals[ROUGE_1].append(max(rouge.rouge_1 for rouge in rouges))
        totals[ROUGE_L].append(max(rouge.rouge_l for rouge in rouges))
    return mean_statistics(totals)


_RULES: Final = {
    headline: Protocol(parse=parse_text, statistics=tk_statistics, headline=headline)
    for headline in (EXACT_MATCH, ROUGE_L)
}


def make_task(name: str, category: str, *, held_out: bool = False) -> Task:
    """A task of a category, which decides its headline.

    Args: held_out: the task is also scored under ``HELD_OUT``, the same rule, whose mean is over such tasks only.
    """
    rule = _RULES[EXACT_MATCH if category in EXACT_CATEGORIES else ROUGE_L]
    protocols = {TK: rule} | ({HELD_OUT: rule} if held_out else {})
    return Task(name=name, version=1, kind=category, protocols=MappingProxyType(protocols))
