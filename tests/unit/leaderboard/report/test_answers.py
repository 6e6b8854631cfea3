"""Predictions judged one by one: items that are found, missing and spurious, and the score of each example alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from harness.leaderboard.report.answers import ItemTable, gold_forms, judge_texts
from harness.task import NOT_PARSED, Example, Protocol, Statistics, Task


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A toy with its colours."""

    what: str
    colours: tuple[str, ...]


def parse_toys(text: str, example: Example) -> Any:
    """``car red,blue; kite green``."""
    if text == "no toys":
        return ()
    toys = [piece.split() for piece in text.split(";")]
    if any(len(toy) != 2 for toy in toys):
        return NOT_PARSED
    return tuple(Toy(what=what, colours=tuple(colours.split(","))) for what, colours in toys)


def items(answer: Any) -> frozenset[Any]:
    return frozenset(answer or ())


def f1_of_sets(golds: Sequence[Any], answers: Sequence[Any]) -> Statistics:
    pairs = [(items(g), items(a)) for g, a in zip(golds, answers, strict=True)]
    per_unit = np.array([[2.0 * len(g & a), len(g) + len(a)] for g, a in pairs])
    return Statistics(per_unit=per_unit, values=lambda s: {"f1": s[..., 0] / np.maximum(s[..., 1], 1)})


def shelves(golds: Sequence[Any], answers: Sequence[Any]) -> Statistics:
    """A unit is a shelf, the first letter of the gold answer: it is right if all of its answers are."""
    names = sorted({g[0] for g in golds})
    right = {n: [g == a for g, a in zip(golds, answers, strict=True) if g[0] == n] for n in names}
    per_unit = np.array([[float(all(right[n])), 1.0] for n in names])
    return Statistics(per_unit=per_unit, values=lambda s: {"shelf": s[..., 0] / s[..., 1]})


def task(rule: Protocol) -> Task:
    return Task(name="toys", version=1, kind="toys", protocols={"official": rule})


SETS = task(Protocol(parse=parse_toys, statistics=f1_of_sets, headline="f1", items=items))


def example(target: str) -> Example:
    return Example(id=target, task="toys", prompt="which toys?", target=target)


def test_the_tasks_own_sets_decide_what_is_found_missing_and_spurious() -> None:
    table = ItemTable()
    one = example("car red;kite green,blue;drum red")
    (found,) = judge_texts(SETS, [one], ["kite green,blue;car red;ball red"], table)["official"]
    named = {kind: [table.items[k] for k in numbers] for kind, numbers in found.form.items()}
    assert named == {
        "found": [["what", "car", "colours", "red"], ["what", "kite", "colours", "green，blue"]],
        "missing": [["what", "drum", "colours", "red"]],
        "spurious": [["what", "ball", "colours", "red"]],
    }
    assert found.score == pytest.approx(2 * 2 / (3 + 3))
    assert not found.correct


def test_the_order_of_items_does_not_make_an_answer_wrong() -> None:
    (found,) = judge_texts(SETS, [example("car red;kite green")], ["kite green;car red"], ItemTable())["official"]
    assert found.correct
    assert found.score == 1.0


def test_an_unparsed_prediction_has_no_form_and_an_empty_answer_has_no_items() -> None:
    both = [example("no toys"), example("car red")]
    right, unparsed = judge_texts(SETS, both, ["no toys", "a car that is red"], ItemTable())["official"]
    assert right.form == {}
    assert right.correct
    assert unparsed.form is None
    assert not unparsed.correct


def test_the_items_of_gold_answers_are_all_found() -> None:
    table = ItemTable()
    (form,) = gold_forms(SETS, [example("car red;kite green")], table)["official"]
    assert list(form) == ["found"]
    assert [table.items[k][1] for k in form["found"]] == ["car", "kite"]


def test_each_example_of_a_unit_of_several_is_scored_by_itself() -> None:
    rule = Protocol(parse=lambda text, e: text.strip() or NOT_PARSED, statistics=shelves, headline="shelf")
    examples = [example("car"), example("cube"), example("drum")]
    found = judge_texts(task(rule), examples, ["car", "kite", "drum"], ItemTable())["official"]
    assert [f.score for f in found] == [1.0, 0.0, 1.0]
    assert [f.form for f in found] == ["car", "kite", "drum"]


def test_a_report_in_sections_keeps_its_headings() -> None:
    rule = Protocol(
        parse=lambda text, e: dict(line.split(": ") for line in text.splitlines()), statistics=shelves, headline="shelf"
    )
    one = Task(name="toys", version=1, kind="toys", protocols={"official": rule})
    (form,) = gold_forms_of(one, "colour: red\nwhat: car")
    assert form == {"sections": {"colour": "red", "what": "car"}}


def gold_forms_of(one: Task, target: str) -> list[Any]:
    def parts(golds: Sequence[Any], answers: Sequence[Any]) -> Statistics:
        right = [[float(g == a), 1.0] for g, a in zip(golds, answers, strict=True)]
        return Statistics(per_unit=np.array(right), values=lambda s: {"shelf": s[..., 0] / s[..., 1]})

    rule = Protocol(parse=one.protocols["official"].parse, statistics=parts, headline="shelf")
    return gold_forms(task(rule), [example(target)], ItemTable())["official"]


def test_many_texts_are_judged_as_few_are() -> None:
    examples = [example("car red")] * 1000
    texts = ["car red" if i % 3 else "kite red" for i in range(1000)]
    found = judge_texts(SETS, examples, texts, ItemTable())["official"]
    assert [f.correct for f in found] == [bool(i % 3) for i in range(1000)]
