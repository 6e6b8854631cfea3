"""A task's file is read key by key, and every flaw is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_instructions import task_content

from harness.errors import DataError
from tasks.superni.task_file import Header, lines_of, read_header, read_task


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def call(content: Any) -> Path:
        path = tmp_path / "task7_toy.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
        return path

    return call


def test_definition_examples_and_instances_are_read(write: Any) -> None:
    task = read_task(write(task_content(7, n=2)))
    assert task.definition == "Name the thing."
    assert task.positive[0].explanation == "It is."
    assert [(i.id, i.outputs) for i in task.instances] == [
        ("task7-0", ("answer 0", "0")),
        ("task7-1", ("answer 1", "1")),
    ]


def test_texts_in_place_of_lists_and_withheld_outputs_are_read(write: Any) -> None:
    lines = [
        {"id": "a", "input": "x", "output": "one"},
        {"id": "b", "input": "y"},
        {"id": "c", "input": "z", "output": [" "]},
    ]
    content = task_content(7, Definition="Name it.", Categories="Sentiment", Instances=lines)
    assert read_header(write(content)) == Header(category="Sentiment", english=True)
    task = read_task(write(content))
    assert task.definition == "Name it."
    assert [i.outputs for i in task.instances] == [("one",), (), ()]


def test_the_header_does_not_need_the_instances_that_follow_it(write: Any) -> None:
    text = json.dumps(task_content(7))
    path = write(text[: text.index('"Instances"') + 20])
    assert read_header(path) == Header(category="Title Generation", english=True)
    with pytest.raises(DataError, match=r"task7_toy\.json, line 1: not JSON"):
        read_task(path)


def test_a_file_without_categories_and_languages_has_neither(write: Any) -> None:
    assert read_header(write(task_content(7, Categories=None, Output_language=None))) == Header(
        category=None, english=True
    )
    assert not read_header(write(task_content(7, Output_language=["Hindi"]))).english


def test_an_instance_is_found_by_its_line(write: Any) -> None:
    path = write(task_content(7, n=3))
    (line,) = lines_of(path, ["task7-2"]).values()
    assert '"task7-2"' in path.read_text(encoding="utf-8").splitlines()[line - 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", ["line 1", "not JSON", "expected '{'"]),
        ('{"Definition": "x",\n "Instances": [}', ["line 2", "not JSON"]),
        ('{"Definition": "x"', ["not JSON", "expected '}'"]),
        ("{}", ["'Definition' is missing"]),
        ({"Definition": ["x"], "Data": []}, ["'Instances' is missing", "Data"]),
        (task_content(7, Definition=[1]), ["'Definition'", "a text or a list of texts", "[1]"]),
        (task_content(7, Instances={"a": 1}), ["'Instances' must be a list"]),
        (task_content(7, Instances=["a"]), ["Instances 1", "object", "'a'"]),
        (task_content(7, Instances=[{"id": "a", "input": 3, "output": "x"}]), ["Instances 1", "'input'", "3"]),
        (task_content(7, Instances=[{"id": "a", "input": "b", "output": [1]}]), ["Instances 1", "'output'", "1"]),
        (task_content(7, Instances=[{"id": "a", "input": "b", "output": 1}]), ["Instances 1", "'output'", "1"]),
        (
            task_content(7, Instances=[{"id": "a", "input": "\ud800"}]),
            ["Instances 1", "'input'", "half of a character"],
        ),
        (task_content(7, Instances=[{"id": "a", "input": "b"}] * 2), ["Instances 2", "'a'", "Instances 1"]),
        (task_content(7, **{"Positive Examples": [{"input": "a"}]}), ["Positive Examples 1", "'output'"]),
    ],
)
def test_a_flaw_is_named_with_its_place(write: Any, content: Any, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read_task(write(content))
    assert "task7_toy.json" in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)
