"""Diagnostics reported next to the scores, as JSON values: confusion matrices, and entity F1 on the sentence."""

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

    ``confusion[i][j]`` is the number of examples with gold label i and predicted label j; the last column counts all
    other predictions.
    """

    def diagnose(examples: Sequence[Example], predictions: Sequence[str]) -> Diagnostics:
        golds = [parse(e.target, e) for e in examples]
        answers = [parse(prediction, e) for prediction, e in zip(predictions, examples, strict=True)]
        occurring = {*golds, *answers}
        names = [label for label in labels if label in occurring]
        position = {label: i for i, label in enumerate(names)}
        counts = [[0] * (len(names) + 1) for _ in names]
        for gold, answer in zip(golds, answers, strict=True):
            if gold in position:
                counts[position[gold]][position.get(answer, len(names))] += 1
        n = sum(map(sum, counts))
        n_correct = sum(counts[i][i] for i in range(len(names)))
        return {"accuracy": n_correct / n if n else None, "labels": names, "confusion": counts}

    return diagnose


def entities_on_sentence(examples: Sequence[Example], predictions: Sequence[str]) -> Diagnostics:
    """seqeval's entity precision, recall and F1, after gold and predicted mentions are located in the sentence.

    Unlike in the score, each occurrence of a mention counts. Mentions that overlap a longer one or do not occur in the
    sentence do not count; ``not_in_sentence`` is the number of predicted mentions that do not occur.
    """
    from seqeval.metrics import f1_score, precision_score, recall_score

    gold_tags, predicted_tags, missing = [], [], 0
    for example, prediction in zip(examples, predictions, strict=True):
        text = sentence(example)
        predicted = official.entities(prediction, example) or ()
        gold_tags.append(tags(text, official.entities(example.target, example) or ()))
        predicted_tags.append(tags(text, predicted))
        missing += sum(entity.mention not in text for entity in set(predicted))
    scores = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    has_tags = any(map(len, gold_tags))  # seqeval fails if there is no token at all
    values = {n: float(score(gold_tags, predicted_tags, zero_division=0)) for n, score in scores.items() if has_tags}
    return {"seqeval": values or None, "not_in_sentence": missing}


def sentence(example: Example) -> str:
    """The sentence that the prompt asks about: the prompt without the templates' lines, or the whole prompt."""
    options = "，".join(example.choices or ())
    lines = [line for line in example.prompt.split("\n") if not _is_instruction(line, options)]
    return "\n".join(lines) or example.prompt


def tags(text: str, entities: Iterable[Entity]) -> list[str]:
    """One BIO tag per character for every occurrence of every mention; longer mentions come first, without overlap."""
    bio: list[str] = ["O"] * len(text)
    for entity in sorted(set(entities), key=lambda e: (-len(e.mention), e.mention, e.type)):
        size = len(entity.mention)
        start = text.find(entity.mention)
        while start >= 0:
            if all(tag == "O" for tag in bio[start : start + size]):
                bio[start : start + size] = [f"B-{entity.type}"] + [f"I-{entity.type}"] * (size - 1)
            start = text.find(entity.mention, start + size)
    return bio


def _is_instruction(line: str, options: str) -> bool:
    asks = bool(options) and (f"{options}实体" in line or line.endswith(f"：{options}"))
    return asks or not line or _INSTRUCTION.fullmatch(line) is not None
