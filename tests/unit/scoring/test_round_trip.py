"""What a perfect model would score with a tokenizer that changes the targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from harness.data.round_trip import in_words, no_answer_survives
from harness.scoring.round_trip import round_trips
from harness.task import NOT_PARSED, Answer, Example, Protocol, Statistics, Task


class Changing:
    """A tokenizer of characters that changes texts before it encodes them."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self.change = change

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool) -> Any:
        return {"input_ids": [[ord(c) for c in self.change(text)] for text in texts]}

    def batch_decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        return ["".join(map(chr, ids)) for ids in sequences]


def _statistics(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    right = [[float(a == g and g is not NOT_PARSED), 1.0] for g, a in zip(golds, answers, strict=True)]
    return Statistics(
        per_unit=np.array(right), values=lambda sums: {"accuracy": np.asarray(sums[..., 0] / sums[..., 1])}
    )


def _parse(text: str, example: Example) -> Answer:
    return NOT_PARSED if "?" in text else text


def _task(name: str) -> Task:
    protocol = Protocol(parse=_parse, statistics=_statistics, headline="accuracy")
    return Task(name=name, version=1, kind="label", protocols={"official": protocol})


def measured(change: Callable[[str], str], **targets: Sequence[str]) -> Any:
    examples = {
        task: [Example(id=str(i), task=task, prompt="p", target=t) for i, t in enumerate(of)]
        for task, of in targets.items()
    }
    return round_trips({task: _task(task) for task in targets}, examples, Changing(change))


def test_a_tokenizer_that_keeps_every_target_is_not_reported() -> None:
    found = measured(lambda text: text, lists=["a\nb"], labels=["是"])
    assert in_words(found) == []
    assert [r.n_changed for r in found] == [0, 0]
    assert not no_answer_survives(found)


def test_tasks_that_lose_the_same_kinds_of_characters_share_a_warning_with_their_scores() -> None:
    found = measured(
        lambda text: text.replace("\n", " ").replace("：", ":"),
        lists=["a\nb", "c"], names=["d\ne"], labels=["是"], pairs=["x：y"],
    )  # fmt: skip
    lists, pairs = in_words(found)
    assert "loses '\\n' in 2 of 3 targets" in lists
    assert "lists 50.0, names 0.0 percent under the protocol official" in lists
    assert "loses '：'" in pairs
    assert "labels" not in lists + pairs
    assert not no_answer_survives(found)


def test_a_score_that_the_targets_themselves_do_not_have_is_not_due_to_the_tokenizer() -> None:
    assert in_words(measured(str.upper, labels=["why?", "1"])) == []


def test_no_answer_survives_if_a_perfect_model_scores_0_in_every_task() -> None:
    assert no_answer_survives(measured(str.upper, one=["a"], two=["b", "c"]))
    assert not no_answer_survives(measured(str.upper, one=["a"], two=["b", "1"]))
    assert not no_answer_survives([])


@pytest.mark.parametrize("target", ["", "  "])
def test_examples_without_a_target_are_left_out(target: str) -> None:
    assert measured(str.upper, one=[target]) == []
    (found,) = measured(str.upper, one=[target, "a"])
    assert (found.n, found.n_changed, found.lost, found.added) == (1, 1, {"a": 1}, {"A": 1})
