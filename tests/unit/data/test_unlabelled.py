"""Examples of any file: in the form of a suite, or bare prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.data.unlabelled import unlabelled_reader
from harness.errors import DataError
from harness.task import Suite, UnlabelledExample
from tasks.firefly.suite import Firefly
from tasks.promptcblue.suite import PromptCBLUE
from tasks.table.suite import TableSuite

TABLE = {
    "name": "shop",
    "task": {
        "sentiment": {
            "train": ["reviews.jsonl"],
            "prompt": "{{ prompt }} Good?",
            "target_column": "label",
            "metrics": ["accuracy"],
        },
        "orders": {
            "train": ["orders.csv"],
            "prompt": "List: {{ order }}",
            "target_column": "items",
            "metrics": ["set_f1"],
            "id_column": "nr",
        },
        "web": {
            "train": ["all.jsonl"],
            "where": {"source": "web"},
            "prompt_column": "text",
            "target_column": "label",
            "metrics": ["accuracy"],
        },
    },
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[UnlabelledExample]]:
    """``read(suite, "name.jsonl", lines or text, task)``."""

    def call(suite: Suite, name: str, content: Any, task: str | None = None) -> list[UnlabelledExample]:
        path = tmp_path / name
        if not isinstance(content, str):
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in content)
        path.write_text(content, encoding="utf-8")
        return list(unlabelled_reader(suite, path, task)())

    return call


def parts(examples: list[UnlabelledExample]) -> list[tuple[str, str | None, str]]:
    return [(e.id, e.task, e.prompt) for e in examples]


def test_promptcblue_needs_the_input_only(read: Any, tmp_path: Path) -> None:
    lines = [
        {
            "input": "什么症状？",
            "target": "",
            "answer_choices": None,
            "task_dataset": "CMeIE-V2",
            "sample_id": "test-9",
        },
        {"input": "头痛吗？", "output": "是的", "sample_id": 4},
        {"input": "问", "task_dataset": "Text2DT"},
    ]
    expected = [("test-9", "CMeIE", "什么症状？"), ("4", None, "头痛吗？"), ("3", "Text2DT", "问")]
    assert parts(read(PromptCBLUE(), "a.json", lines)) == expected
    array = read(PromptCBLUE(), "b.json", json.dumps(lines, ensure_ascii=False, indent=1))
    assert parts(array) == expected
    assert array[1].place == f"{tmp_path / 'b.json'}, item 2"


def test_firefly_has_the_ids_of_a_folder(read: Any) -> None:
    lines = [{"kind": "NLI", "input": "前提"}, {"input": "对联"}]
    assert parts(read(Firefly(), "test.jsonl", lines)) == [("test-1", "NLI", "前提"), ("test-2", None, "对联")]


def test_prompts_are_json_or_lines_of_text(read: Any) -> None:
    lines = [{"prompt": "红色？", "id": "q1", "task": "colour", "x": 1}, {"prompt": "two"}]
    expected = [("q1", "colour", "红色？"), ("2", None, "two")]
    for suite in (Firefly(), TableSuite(definition=TABLE)):
        assert parts(read(suite, "p.jsonl", lines, "orders")) == expected
    assert parts(read(PromptCBLUE(), "p.jsonl", lines)) == expected
    assert parts(read(PromptCBLUE(), "p.json", json.dumps(lines))) == expected
    text = "\ufeff红色？\r\n\n  two words \n"
    assert parts(read(PromptCBLUE(), "p.txt", text)) == [("1", None, "红色？"), ("3", None, "  two words ")]


def test_a_table_suite_fills_the_template_of_the_task(read: Any) -> None:
    suite = TableSuite(definition=TABLE)
    named = read(suite, "reviews.jsonl", [{"prompt": "很好"}])
    assert parts(named) == [("sentiment-1", "sentiment", "很好 Good?")]
    chosen = read(suite, "new.csv", "order,nr\n面条,7\n", "orders")
    assert parts(chosen) == [("orders-7", "orders", "List: 面条")]
    by_where = read(
        suite, "other.jsonl", [{"source": "web", "text": "t"}, {"source": "shop", "prompt": "p"}], "sentiment"
    )
    assert parts(by_where) == [("web-1", "web", "t"), ("sentiment-2", "sentiment", "p Good?")]


@pytest.mark.parametrize(
    ("suite", "name", "content", "words"),
    [
        (
            PromptCBLUE(),
            "a.json",
            '{"inptu": "x"}\n',
            ["line 1: no column 'input'", "'inptu'", "column 'prompt'", ".txt"],
        ),
        (PromptCBLUE(), "a.json", '{"input": "x"}\n{"input": 3}\n', ["line 2: 'input' must be text"]),
        (PromptCBLUE(), "a.json", '{"input": "x", "task_dataset": ["a"]}\n', ["'task_dataset' must be text"]),
        (PromptCBLUE(), "a.json", "", ["the file is empty"]),
        (PromptCBLUE(), "a.txt", "\n\n", ["the file is empty, or all its lines are blank"]),
        (PromptCBLUE(), "a.json", '{"prompt": "x"}\n{"input": "y"}\n', ["line 2: no column 'prompt'"]),
        (TableSuite(definition=TABLE), "new.csv", "order,nr\nx,1\n", ["does not say which task", "orders, web"]),
        (TableSuite(definition=TABLE), "orders.csv", "ordr,nr\nx,1\n", ["task.orders.prompt", "Did you mean 'ordr'"]),
        (TableSuite(definition=TABLE), "orders.csv", "order\nx\n", ["task.orders.id_column", "no column 'nr'"]),
        (TableSuite(definition=TABLE), "orders.xls", "x", ["the format is not known", ".csv"]),
    ],
)
def test_a_wrong_file_is_one_line_with_the_remedy(
    read: Any, tmp_path: Path, suite: Suite, name: str, content: str, words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        read(suite, name, content)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name))
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_text_in_another_encoding_names_line_and_command(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("ok\n风筝\n".encode("gb18030"))
    with pytest.raises(DataError, match=r"line 2: byte 1 is not UTF-8.*iconv -f GB18030"):
        list(unlabelled_reader(Firefly(), tmp_path / "p.txt", None)())


def test_a_file_is_read_one_example_at_a_time(read: Any, tmp_path: Path) -> None:
    with (tmp_path / "p.jsonl").open("w") as file:
        file.write('{"input": "x", "sample_id": "1"}\n' * 3 + "broken\n")
    stream = unlabelled_reader(PromptCBLUE(), tmp_path / "p.jsonl", None)()
    assert [next(stream).id for _ in range(3)] == ["1"] * 3
    with pytest.raises(DataError, match="line 4"):
        next(stream)
