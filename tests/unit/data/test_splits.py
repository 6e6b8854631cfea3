"""Parts of a split that have no content in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from logged import messages

from harness.data.splits import Choice, Use, in_part, load_split
from harness.errors import DataError, nearest
from harness.task import Example, Suite, Task

PROMPTS = st.lists(st.text("ab \n", max_size=4), max_size=30)
TEMPLATES = ("Which intent has this query?\n{}", "{}\nName its intent:", "Query: “{}”\nintent:")


def example(prompt: str) -> Example:
    return Example(id=prompt, task="intent", prompt=prompt, target="yes")


@given(PROMPTS)
def test_every_example_is_in_one_part_and_equal_prompts_are_in_the_same(prompts: list[str]) -> None:
    examples = [example(prompt) for prompt in prompts]
    tune, report = in_part(examples, "tune"), in_part(examples, "report")
    assert (tune != report).all()
    by_prompt: dict[str, set[bool]] = {}
    for prompt, inside in zip(prompts, tune, strict=True):
        by_prompt.setdefault(prompt, set()).add(bool(inside))
    assert all(len(parts) == 1 for parts in by_prompt.values())


def test_half_of_the_contents_are_in_each_part_and_a_content_in_two_templates_is_in_one() -> None:
    contents = [f"how long does illness number {i} last" for i in range(40)]
    examples = [example(template.format(content)) for template in TEMPLATES for content in contents]
    tune = in_part(examples, "tune").reshape(len(TEMPLATES), len(contents))
    assert (tune == tune[0]).all()
    assert tune[0].sum() == 20


def test_the_order_of_examples_does_not_matter() -> None:
    examples = [example(f"prompt {i}") for i in range(20)]
    assert in_part(examples, "tune").tolist() == in_part(examples[::-1], "tune").tolist()[::-1]


@dataclass(frozen=True, kw_only=True)
class Given(Suite):
    """Examples with the given targets, by task."""

    name: ClassVar[str] = "given"
    version: ClassVar[int] = 1
    targets: Mapping[str, Sequence[str | None]]

    @property
    def tasks(self) -> Mapping[str, Task]:
        return {name: Task(name=name, version=1, kind="label", protocols={}) for name in ("a", "b")}

    def read(self, source: str, split: str) -> Dataset:
        lines = [
            (f"{t}{i}", t, "?", given or "") for t, targets in self.targets.items() for i, given in enumerate(targets)
        ]
        columns = zip(*lines, strict=True)
        return Dataset.from_dict(dict(zip(("id", "task", "prompt", "target"), map(list, columns), strict=True)))


def ids(suite: Suite, split: str, choice: Choice | None = None, **use: bool) -> dict[str, list[str]]:
    found = load_split(suite, "here", split, ["a", "b"], choice or Choice(), use=Use(**use))
    return {task: [found.dataset[int(i)]["id"] for i in indices] for task, indices in found.by_task.items()}


PARTLY = Given(targets={"a": ["x", "", "y", None, " \n", "z"], "b": ["x"]})


def test_examples_without_a_target_are_left_out_and_counted() -> None:
    for withheld in (False, True):
        with messages() as lines:
            assert ids(PARTLY, "test", withheld=withheld) == {"a": ["a0", "a2", "a5"], "b": ["b0"]}
        assert lines == ["test: 3 examples without a target left out (a 3); the first is here, test example 'a1'"]


def test_a_number_of_examples_per_task_is_a_number_of_examples_with_a_target() -> None:
    assert [len(of) for of in ids(PARTLY, "train", Choice(per_task=3)).values()] == [3, 1]


@dataclass(frozen=True, kw_only=True)
class Questions(Given):
    """The examples of task a belong to questions of three answers each; those of b are by themselves."""

    def read(self, source: str, split: str) -> Dataset:
        given = super().read(source, split)
        groups = [f"question {int(id_[1:]) // 3}" if id_[0] == "a" else None for id_ in given["id"]]
        return given.add_column("group", groups)


def test_a_number_of_examples_per_task_keeps_all_answers_to_a_question_or_none() -> None:
    suite = Questions(targets={"a": ["x"] * 12, "b": ["x"] * 12})
    for limit, n in ((1, 3), (3, 3), (5, 3), (6, 6), (11, 9), (99, 12)):
        found = ids(suite, "test", Choice(per_task=limit))
        questions = {int(id_[1:]) // 3 for id_ in found["a"]}
        assert found["a"] == [f"a{3 * q + i}" for q in sorted(questions) for i in range(3)]
        assert (len(found["a"]), len(found["b"])) == (n, min(limit, 12))
    larger, smaller = (set(ids(suite, "test", Choice(per_task=limit))["a"]) for limit in (9, 6))
    assert smaller < larger


def test_all_answers_to_a_question_are_in_one_half_of_a_split() -> None:
    suite = Questions(targets={"a": ["x"] * 30, "b": []})
    tune, report = (ids(suite, "dev", Choice(part=part))["a"] for part in ("tune", "report"))
    assert len(tune) == len(report) == 15
    assert not {int(id_[1:]) // 3 for id_ in tune} & {int(id_[1:]) // 3 for id_ in report}


def test_a_task_without_any_target_is_kept_for_prediction_only() -> None:
    suite = Given(targets={"a": ["", None], "b": ["x"]})
    assert ids(suite, "test", withheld=True) == {"a": ["a0", "a1"], "b": ["b0"]}
    assert ids(suite, "train") == {"a": [], "b": ["b0"]}


def test_a_split_without_any_target_cannot_be_learnt_from() -> None:
    suite = Given(targets={"a": ["", " "], "b": [None]})
    for use in ({}, {"allow_empty": True, "needs_targets": True}):
        with pytest.raises(DataError, match=r"train example 'a0': no example of the train split has a target"):
            ids(suite, "train", **use)
    assert ids(suite, "train", allow_empty=True) == {"a": [], "b": []}


def test_a_name_in_other_case_is_similar() -> None:
    assert nearest("chip-sts", ["CHIP-STS", "MedDG"]) == " Did you mean 'CHIP-STS'?"
