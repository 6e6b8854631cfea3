"""Figures beside the scores: where a model's labels go wrong, and entity F1 on the sentence. JSON values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from harness.task import Diagnostics, Example
from tasks.promptcblue import parsers_official as official
from tasks.promptcblue.answers import Entity
from tasks.promptcblue.protocols import Parse

_INSTRUCTION = re.compile(r"答：|.{0,12}实体.{0,6}[：？]")


def confusion(labels: tuple[str, ...], parse: Parse) -> Callable[[Sequence[Example], Sequence[str]], Diagnostics]:
    """Accuracy and confusion matrix over the labels that occur.

    ``confusion[i][j]`` counts examples of gold label i that were given label j; the last column is every other text.
    """

    def diagnose(examples: Sequence[Example], texts: Sequence[str]) -> Diagnostics:
        golds = [parse(e.target, e) for e in examples]
        answers = [parse(text, e) for text, e in zip(texts, examples, strict=True)]
        seen = {*golds, *answers}
        names = [label for label in labels if label in seen]
        place = {label: i for i, label in enumerate(names)}
        counts = [[0] * (len(names) + 1) for _ in names]
        for gold, answer in zip(golds, answers, strict=True):
            if gold in place:
                counts[place[gold]][place.get(answer, len(names))] += 1
        n = sum(map(sum, counts))
        right = sum(counts[i][i] for i in range(len(names)))
        return {"accuracy": right / n if n else None, "labels": names, "confusion": counts}

    return diagnose


def entities_on_sentence(examples: Sequence[Example], texts: Sequence[str]) -> Diagnostics:
    """seqeval's entity precision, recall and F1 of gold and predicted mentions, found again in the sentence.

    Unlike the score, a mention counts as often as the sentence has it, and one that the sentence does not have (see
    ``not_in_sentence``) or that overlaps a longer one does not count.
    """
    from seqeval.metrics import f1_score, precision_score, recall_score

    gold_tags, predicted_tags, missing = [], [], 0
    for example, text in zip(examples, texts, strict=True):
        place = sentence(example)
        predicted = official.entities(text, example) or ()
        gold_tags.append(tags(place, official.entities(example.target, example) or ()))
        predicted_tags.append(tags(place, predicted))
        missing += sum(entity.mention not in place for entity in set(predicted))
    scores = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    has_tags = any(map(len, gold_tags))  # seqeval cannot average over no token at all
    values = {n: float(score(gold_tags, predicted_tags, zero_division=0)) for n, score in scores.items() if has_tags}
    return {"seqeval": values or None, "not_in_sentence": missing}


def sentence(example: Example) -> str:
    """The sentence that the prompt asks about: its lines without those of the templates, or the whole prompt."""
    options = "，".join(example.choices or ())
    lines = [line for line in example.prompt.split("\n") if not _is_instruction(line, options)]
    return "\n".join(lines) or example.prompt


def tags(text: str, entities: Iterable[Entity]) -> list[str]:
    """One BIO tag per character: every occurrence of every mention, longer mentions first, never one over another."""
    found: list[str] = ["O"] * len(text)
    for entity in sorted(set(entities), key=lambda e: (-len(e.mention), e.mention, e.type)):
        size = len(entity.mention)
        start = text.find(entity.mention)
        while start >= 0:
            if all(tag == "O" for tag in found[start : start + size]):
                found[start : start + size] = [f"B-{entity.type}"] + [f"I-{entity.type}"] * (size - 1)
            start = text.find(entity.mention, start + size)
    return found


def _is_instruction(line: str, options: str) -> bool:
    asks = bool(options) and (f"{options}实体" in line or line.endswith(f"：{options}"))
    return asks or not line or _INSTRUCTION.fullmatch(line) is not None
