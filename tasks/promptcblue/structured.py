"""The competition's second format: the answers of a file of predictions in one JSON object, by task.

This module is also the main part of the script in a submission (``tasks.promptcblue.submission``). The script runs
without this project, on Python 3.7 or later: this module has no newer syntax outside annotations, and imports nothing
else from outside the standard library than the names below.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.task import Answer, Example
from tasks.promptcblue.parsers_official import (
    entities,
    events,
    findings,
    label,
    names,
    reply,
    report,
    same_or_not,
    symptoms,
    triples,
)


def entity_object(item: Any) -> Any:
    return {"entity": item.mention, "type": item.type}


def triple_object(item: Any) -> Any:
    return {"predicate": item.predicate, "subject": item.subject, "object": item.object}


def event_object(item: Any) -> Any:
    return {
        "主体词": item.subject,
        "发生状态": item.status,
        "描述词": list(item.descriptions),
        "解剖部位": list(item.places),
    }


def finding_object(item: Any) -> Any:
    return {"entity": item.mention, "attr": item.status}


def name_object(item: Any) -> Any:
    return {"entity": item, "type": "normalization"}


# Tasks whose answer is a list: the parser, and how an item is written.
LISTS: Mapping[str, tuple[Callable[[str, Example], Answer], Callable[[Any], Any]]] = {
    "CMeEE-V2": (entities, entity_object),
    "CMeIE": (triples, triple_object),
    "CMeIE-V2": (triples, triple_object),
    "CHIP-CDN": (names, name_object),
    "CHIP-CDEE": (events, event_object),
    "CHIP-MDCFNPC": (findings, finding_object),
    "IMCS-V2-NER": (entities, entity_object),
    "IMCS-V2-SR": (symptoms, finding_object),
}
# Tasks whose answer is a text.
TEXTS: Mapping[str, Callable[[str, Example], Answer]] = {
    "CHIP-STS": same_or_not,
    "CHIP-CTC": label,
    "KUAKE-IR": label,
    "KUAKE-QIC": label,
    "KUAKE-QQR": label,
    "KUAKE-QTR": label,
    "IMCS-V2-DAC": label,
    "MedDG": reply,
}
REPORT = "IMCS-V2-MRG"
# A decision tree has at least one node; an empty one stands for no answer.
TREE, NO_TREE = "Text2DT", {"role": "D", "logical_rel": "null", "triples": []}


def structured_answer(task: str, text: str, choices: Sequence[str] | None) -> Any:
    """The answer of one prediction as a JSON value; for a task without a parser here, the one that means no answer.

    Args: task: ``task_dataset``. choices: ``answer_choices``.
    """
    offered = None if choices is None else tuple(choices)
    example = Example(id="", task=task, prompt="", target="", choices=offered)
    if task in LISTS:
        parse, as_object = LISTS[task]
        return [as_object(item) for item in parse(text, example) or ()]
    if task in TEXTS:
        return TEXTS[task](text, example) or ""
    if task == REPORT:
        return dict(report(text, example) or {})
    return [NO_TREE] if task == TREE else []


def structured_answers(lines: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """By task, in the order of the lines: ``[{"sample_id": …, "answer": …}, …]``."""
    found: dict[str, list[Any]] = {}
    for line in lines:
        answer = structured_answer(line["task_dataset"], line["target"], line.get("answer_choices"))
        found.setdefault(line["task_dataset"], []).append({"sample_id": line["sample_id"], "answer": answer})
    return found


def main(arguments: Sequence[str]) -> None:
    """Read a file of predictions, and write the answers: test_predictions.json results.json."""
    source, destination = arguments
    with open(source, encoding="utf-8") as file:  # noqa: PTH123
        answers = structured_answers(json.loads(line) for line in file if line.strip())
    with open(destination, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(answers, file, ensure_ascii=False, indent=2)


if __name__ == "__main__":
    main(sys.argv[1:])
