"""``official`` equals the released scorer on every golden prediction: answers and scores.

The golden files are for research only and no part of the project: without them these tests are skipped.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from harness.scoring.judge import judge
from harness.task import NOT_PARSED, Answer, Example
from tasks.promptcblue.answers import Entity, Event, Finding, Triple
from tasks.promptcblue.tasks import TASKS

SCORES = {
    "f1": ("precision", "recall", "f1"),
    "weighted_f1": ("weighted_precision", "weighted_recall", "weighted_f1"),
    "macro_f1": ("macro_precision", "macro_recall", "macro_f1"),
    "rouge_l": ("rouge_1", "rouge_2", "rouge_l"),
}


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> Path:
    folder = shared_data / "golden"
    if not folder.is_dir():
        pytest.skip(f"no golden predictions at {folder}")
    return folder


@pytest.fixture(scope="module")
def lines(golden: Path) -> list[dict[str, Any]]:
    with (golden / "promptcblue.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def example_of(line: dict[str, Any]) -> Example:
    choices = line["answer_choices"]
    return Example(
        id=line["sample_id"],
        task=line["task"],
        prompt="",
        target=line["target"],
        choices=None if choices is None else tuple(choices),
    )


def as_released(task: str, answer: Answer) -> Any:
    """An answer in the released scorer's format, with its fallback for an unparsed text."""
    if task == "MedDG" or TASKS[task].protocols["official"].headline in ("macro_f1", "weighted_f1"):
        return "" if answer is NOT_PARSED else answer
    if task == "IMCS-V2-MRG":
        return {} if answer is NOT_PARSED else answer
    return [item_as_released(item) for item in answer or ()]


def item_as_released(item: Any) -> dict[str, Any]:
    match item:
        case Entity():
            return {"entity": item.mention, "type": item.type}
        case Triple():
            return {"predicate": item.predicate, "subject": item.subject, "object": item.object}
        case Finding():
            return {"entity": item.mention, "attr": item.status}
        case Event():
            lists = {"描述词": list(item.descriptions), "解剖部位": list(item.places)}
            return {"主体词": item.subject, "发生状态": item.status, **lists}
        case _:
            return {"entity": item, "type": "normalization"}


def test_every_golden_line_is_parsed_as_the_released_parser_did(lines: list[dict[str, Any]]) -> None:
    assert {line["task"] for line in lines} == set(TASKS)
    for line in lines:
        task, example = line["task"], example_of(line)
        for text, expected in ((line["target"], "gold_answer"), (line["prediction"], "predicted_answer")):
            ours = as_released(task, TASKS[task].protocols["official"].parse(text, example))
            theirs = line[expected]
            if task == "CHIP-CDN":  # these came out of a set
                ours, theirs = ({item["entity"] for item in items} for items in (ours, theirs))
            assert ours == theirs, (task, text)


def test_every_golden_batch_has_the_released_scores_to_nine_digits(golden: Path, lines: list[dict[str, Any]]) -> None:
    batches = defaultdict(list)
    for line in lines:
        batches[line["task"], line["batch"]].append(line)
    scores = json.loads((golden / "scores.json").read_text(encoding="utf-8"))
    assert len(scores) == len(batches) == 64
    for expected in scores:
        batch = batches[expected["task"], expected["batch"]]
        task = TASKS[expected["task"]]
        statistics = judge(
            task, "official", [example_of(line) for line in batch], [line["prediction"] for line in batch]
        ).statistics
        values = statistics.values(statistics.per_unit.sum(0))
        names = SCORES[task.protocols["official"].headline]
        theirs = {key: expected[key] for key in expected if key not in ("task", "batch", "n")}
        assert expected["n"] == len(batch)
        assert [float(values[name]) for name in names] == pytest.approx(list(theirs.values()), abs=1e-9), expected


def test_clean_golden_predictions_are_perfect_under_every_protocol(lines: list[dict[str, Any]]) -> None:
    clean = defaultdict(list)
    for line in lines:
        if line["batch"] == "clean":
            clean[line["task"]].append(line)
    for name, batch in clean.items():
        for protocol, rule in TASKS[name].protocols.items():
            judged = judge(TASKS[name], protocol, [example_of(x) for x in batch], [x["prediction"] for x in batch])
            values = judged.statistics.values(judged.statistics.per_unit.sum(0))
            assert float(values[rule.headline]) == pytest.approx(1, abs=1e-7), (name, protocol)
            assert judged.n_unparsed == 0
            assert not judged.n_invented
