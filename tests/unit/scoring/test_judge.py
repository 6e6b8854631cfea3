"""Judging toy predictions: parsed answers, counts, and results that protocols share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.scoring.judge import JudgeCache, judge
from harness.task import NOT_PARSED, Example, Floats, Protocol, Statistics, Task

PARSED: list[str] = []
COUNTED: list[int] = []


def colour(text: str, example: Example) -> Any:
    PARSED.append(text)
    return text if text in ("red", "blue", "pink") else NOT_PARSED


def lenient(text: str, example: Example) -> Any:
    return text.strip()


def metrics(sums: Floats) -> Mapping[str, Floats]:
    return {"accuracy": sums[..., 0] / sums[..., 1], "error": 1 - sums[..., 0] / sums[..., 1]}


def accuracy(golds: Sequence[Any], answers: Sequence[Any]) -> Statistics:
    COUNTED.append(len(golds))
    hits = np.array([[float(g == a), 1.0] for g, a in zip(golds, answers, strict=True)])
    return Statistics(per_unit=hits, values=metrics)


TASK = Task(
    name="sky",
    version=1,
    kind="label",
    protocols={
        "official": Protocol(parse=colour, statistics=accuracy, headline="accuracy"),
        "error": Protocol(parse=colour, statistics=accuracy, headline="error"),
        "lenient": Protocol(parse=lenient, statistics=accuracy, headline="accuracy"),
    },
    invented=lambda answer, example: answer is not NOT_PARSED and answer not in ("red", "blue"),
)
EXAMPLES = [Example(id=str(i), task="sky", prompt="?", target="red") for i in range(4)]
PREDICTIONS = ["red", "blue", "pink", "the sky is red"]


def test_answers_that_are_unparsed_or_not_offered_are_counted() -> None:
    judged = judge(TASK, "official", EXAMPLES, PREDICTIONS)
    assert judged.golds == ["red"] * 4
    assert judged.answers == ["red", "blue", "pink", NOT_PARSED]
    assert (judged.n_unparsed, judged.n_invented) == (1, 1)
    assert judge(TASK, "lenient", EXAMPLES, PREDICTIONS).n_unparsed == 0


def test_protocols_share_what_their_functions_have_in_common() -> None:
    PARSED.clear()
    COUNTED.clear()
    cache = JudgeCache()
    judged = {name: judge(TASK, name, EXAMPLES, PREDICTIONS, cache) for name in TASK.protocols}
    assert len(PARSED) == 2 * len(EXAMPLES)  # Targets and predictions, by one parser, once.
    assert len(COUNTED) == 2  # Two parsers; the two protocols of one parser have the same statistics.
    assert judged["official"].statistics is judged["error"].statistics
    assert judged["lenient"].statistics is not judged["official"].statistics


def test_a_shared_result_is_the_result_without_a_cache() -> None:
    cache = JudgeCache()
    for name in TASK.protocols:
        shared, alone = judge(TASK, name, EXAMPLES, PREDICTIONS, cache), judge(TASK, name, EXAMPLES, PREDICTIONS)
        assert shared.parsed == alone.parsed
