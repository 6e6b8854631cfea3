"""Objects of JSON files, lines or arrays, are read one by one; anything wrong is one line with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import DataError
from harness.json_arrays import read_json_objects

TOYS = [{"toy": "球", "n": 1}, {"toy": 'a "kite"]', "n": 2}, {"toy": "{", "n": 3}]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n  "])
def test_an_array_has_the_objects_of_json_loads(tmp_path: Path, indent: int | None, start: str) -> None:
    file = tmp_path / "toys.json"
    file.write_text(start + json.dumps(TOYS, ensure_ascii=False, indent=indent), encoding="utf-8")
    found = list(read_json_objects(file, {"toy": (str,)}))
    assert [item.columns for item in found] == TOYS
    assert [item.number for item in found] == [1, 2, 3]
    assert found[1].place == f"{file}, item 2"


def test_lines_are_read_too(tmp_path: Path) -> None:
    file = tmp_path / "toys.jsonl"
    file.write_text("\n".join(json.dumps(toy) for toy in TOYS))
    found = list(read_json_objects(file, {}))
    assert [item.columns for item in found] == TOYS
    assert found[2].place == f"{file}, line 3"


def test_an_array_that_is_larger_than_what_is_read_at_once_is_read_whole(tmp_path: Path) -> None:
    toys = [{"toy": "木马" * 3000, "n": i} for i in range(400)] + [{"toy": "x" * 3_000_000}, {"toy": "last"}]
    file = tmp_path / "toys.json"
    file.write_text(json.dumps(toys, ensure_ascii=False), encoding="utf-8")
    assert [item.columns for item in read_json_objects(file, {})] == toys


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", ["the array is empty"]),
        ('[{"toy": "a"}', ["no end after item 1", "complete"]),
        ('[{"toy": "a"},', ["no end after item 1"]),
        ('[{"toy": "a"} {"toy": "b"}]', ["item 1", "a comma or ] is expected"]),
        ('[{"toy": "a"},]', ["item 1", "another item is expected"]),
        ('[{"toy": "a"}] x', ["item 1", "text is left", "'x'"]),
        ('[{"toy": "a"}, {"toy" "b"}]', ["item 2", "broken JSON"]),
        ('[{"toy": "a"}, {"tyo": "b"}]', ["item 2", "no column 'toy'", "Did you mean 'tyo'"]),
        ('[{"toy": 3}]', ["item 1", "'toy' must be text"]),
        ("[1]", ["item 1", "expected a JSON object with toy"]),
        ('[{"toy": "\\ud800"}]', ["item 1", "half a character"]),
        ("", ["the file is empty"]),
    ],
)
def test_a_broken_file_is_one_line_with_its_place(tmp_path: Path, content: str, words: list[str]) -> None:
    file = tmp_path / "toys.json"
    file.write_text(content)
    with pytest.raises(DataError) as caught:
        list(read_json_objects(file, {"toy": (str,)}))
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_another_encoding_is_named_with_the_command_that_converts_it(tmp_path: Path) -> None:
    file = tmp_path / "toys.json"
    file.write_bytes('[{"toy": "风筝"}]'.encode("gb18030"))
    with pytest.raises(DataError, match="iconv -f GB18030"):
        list(read_json_objects(file, {}))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.dictionaries(st.text(max_size=4), st.text() | st.integers() | st.none(), max_size=3), min_size=1))
def test_any_objects_are_read_back(tmp_path_factory: pytest.TempPathFactory, objects: list[dict[str, Any]]) -> None:
    file = tmp_path_factory.mktemp("arrays") / "a.json"
    try:
        text = json.dumps(objects, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    file.write_bytes(text)
    assert [item.columns for item in read_json_objects(file, {})] == objects
