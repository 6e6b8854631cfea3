"""Small files of SuperGLUE in the official layout, about toys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]
PASSAGE = "Ann has a red kite. Bob has two drums."


def multirc(number: int = 0, text: str = PASSAGE) -> Line:
    """A passage with two questions; the first has three answers, two of which are true."""
    questions = [
        {"question": "Who has a toy?", "idx": 0, "answers": [
            {"text": "Ann", "idx": 0, "label": 1}, {"text": "Bob", "idx": 1, "label": 1},
            {"text": "Cleo", "idx": 2, "label": 0},
        ]},
        {"question": "Which toy is red?", "idx": 1, "answers": [{"text": "The drum", "idx": 3, "label": 0}]},
    ]  # fmt: skip
    return {"idx": number, "passage": {"text": text, "questions": questions}}


def record(number: int = 0, text: str = "Ann Lee met Bob.\n@highlight\nAnn gave a kite") -> Line:
    """A passage with one query, to which two entities are correct."""
    spans = [{"start": 0, "end": 6}, {"start": 12, "end": 14}, {"start": 28, "end": 30}]
    answers = [{"start": 0, "end": 6, "text": "Ann Lee"}, {"start": 28, "end": 30, "text": "Ann"}]
    return {
        "idx": number,
        "passage": {"text": text, "entities": spans},
        "qas": [{"query": "The kite was from @placeholder.", "idx": number + 7, "answers": answers}],
    }


def wsc(number: int = 0, *, label: bool = True) -> Line:
    target = {"span1_text": "Ann", "span1_index": 0, "span2_text": "she", "span2_index": 6}
    return {"idx": number, "text": "Ann gave Eve a kite because she had two.", "target": target, "label": label}


SIMPLE: Mapping[str, Line] = {
    "boolq": {"idx": 3, "passage": PASSAGE, "question": "does bob have a kite", "label": False},
    "cb": {"idx": 4, "premise": "Ann knew that Bob slept.", "hypothesis": "Bob slept", "label": "entailment"},
    "copa": {
        "idx": 5, "premise": "The kite flew off.", "choice1": "The wind was strong.", "choice2": "Ann slept.",
        "question": "cause", "label": 0,
    },
    "rte": {"idx": 6, "premise": PASSAGE, "hypothesis": "Bob has a kite.", "label": "not_entailment"},
    "wic": {"idx": 7, "word": "kite", "sentence1": "A red kite.", "sentence2": "A kite is a bird.", "label": False},
}  # fmt: skip
LINES: Mapping[str, Line] = {**SIMPLE, "multirc": multirc(), "record": record(), "wsc": wsc()}


def write(path: Path, lines: Sequence[Line]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
