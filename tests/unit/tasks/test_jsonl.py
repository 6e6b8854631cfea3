"""Reading JSON lines, and building data sets from them."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import harness.json_lines as reader
from harness.errors import DataError
from harness.json_lines import quoted, read_json_lines
from harness.task import Example, to_example
from tasks.common.jsonl import build_dataset

COLUMNS = {"input": (str,), "choices": (list, type(None))}


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines_of(path: Path) -> list[tuple[int, dict[str, Any]]]:
    return list(read_json_lines(path, COLUMNS))


def test_lines_keep_their_numbers_across_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        '\ufeff{"input": "甲\\u2028乙", "choices": null}\r\n\n  \n{"input": "", "choices": ["是"], "more": 1}',
    )
    assert lines_of(path) == [
        (1, {"input": "甲\u2028乙", "choices": None}),
        (4, {"input": "", "choices": ["是"], "more": 1}),
    ]


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"input": "甲\u2028\u0085乙", "choices": null}\n')
    assert lines_of(path)[0][1]["input"] == "甲\u2028\u0085乙"


GOOD = '{"input": "甲", "choices": null}\n'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"input": "甲"}]', ["line 1", "JSON array", "JSON lines", "jq -c"]),
        ("\n\n [\n{}\n]", ["line 3", "JSON array"]),
        ("", ["empty"]),
        ("\n \n", ["empty"]),
        (GOOD + '{"input": "甲', ["line 2", "broken JSON", "complete JSON object", '{"input": "甲']),
        ("{\n", ["line 1", "broken JSON"]),
        (GOOD + "3\n", ["line 2", "a whole number", "object", "input, choices"]),
        ('{"inputs": "甲", "choices": null}', ["line 1", "no column 'input'", "Did you mean 'inputs'", "'choices'"]),
        ('{"input": 3, "choices": null}', ["'input' must be text", "a whole number", ": 3"]),
        ('{"input": "甲", "choices": "是"}', ["'choices' must be a list of texts or null", "not text", "'是'"]),
        ('{"input": "甲", "choices": [1]}', ["'choices'", "a list with other values than texts", "[1]"]),
        ('{"input": "\\ud800", "choices": null}', ["line 1", "half a character", "\\ud800"]),
        ('{"input": "甲", "choices": ' + "[" * 100_000, ["line 1", "cannot be read"]),
        ('{"input": "甲", "choices": null, "n": ' + "9" * 10_000 + "}", ["line 1", "cannot be read"]),
        (GOOD.encode() + "{甲".encode("gb18030"), ["line 2", "byte 2", "not UTF-8", "iconv -f GB18030"]),
        (GOOD.encode("utf-16"), ["line 1", "not UTF-8", "iconv -f UTF-16"]),
    ],
)
def test_a_bad_file_is_named_with_its_line_its_value_and_a_remedy(
    tmp_path: Path, content: bytes | str, words: list[str]
) -> None:
    path = write(tmp_path / "bad.jsonl", content)
    with pytest.raises(DataError) as caught:
        lines_of(path)
    message = str(caught.value)
    assert str(path) in message
    assert [w for w in words if w not in message] == []
    assert len(message) < len(str(path)) + 400


def test_true_is_not_a_whole_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"n": true}')
    with pytest.raises(DataError, match="'n' must be a whole number, not true or false"):
        list(read_json_lines(path, {"n": (int,)}))
    assert list(read_json_lines(path, {"n": (bool,)})) == [(1, {"n": True})]


def test_lines_before_the_first_bad_one_are_read(tmp_path: Path) -> None:
    lines = read_json_lines(write(tmp_path / "a.jsonl", GOOD + "?"), COLUMNS)
    assert next(lines)[0] == 1
    with pytest.raises(DataError, match="line 2"):
        next(lines)


def test_the_error_for_a_missing_file_lists_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "train.json", GOOD)
    with pytest.raises(DataError, match=r"no such file.*'train.json'.*contains train.json"):
        lines_of(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match="there is no folder"):
        lines_of(tmp_path / "nowhere" / "train.jsonl")
    with pytest.raises(DataError, match="a folder"):
        lines_of(tmp_path)


def test_a_line_that_is_too_long_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LONGEST_LINE", 2**20)
    path = write(tmp_path / "a.jsonl", '{"input": "' + "a" * 2**24)
    tracemalloc.start()
    with pytest.raises(DataError, match="longer than 1 MiB"):
        lines_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


def test_quoted_values_are_short_and_on_one_line() -> None:
    assert quoted("甲\n\x1b[0m\u202e") == r"'甲\n\x1b[0m\u202e'"
    assert len(quoted("\x00" * 10**6)) == len(quoted(["a" * 10**4] * 9)) == 61


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_with_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "any.jsonl", content)
    refused: DataError | None = None
    found: list[tuple[int, dict[str, Any]]] = []
    try:
        found = lines_of(path)
    except DataError as error:
        refused = error
    assert all(isinstance(row["input"], str) for _, row in found)
    assert bool(found) is (refused is None)
    assert refused is None or "any.jsonl" in str(refused)


OBJECTS = st.fixed_dictionaries(
    {"input": st.text(max_size=20), "choices": st.none() | st.lists(st.text(max_size=5), max_size=3)}
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(objects=st.lists(OBJECTS, min_size=1, max_size=5), ascii_only=st.booleans())
def test_what_was_written_is_read_back(tmp_path: Path, objects: list[dict[str, Any]], ascii_only: bool) -> None:
    path = write(tmp_path / "b.jsonl", "\n".join(json.dumps(o, ensure_ascii=ascii_only) for o in objects))
    assert [row for _, row in lines_of(path)] == objects


class Source:
    """Examples of one file; ``reads`` is the number of times the file was read."""

    def __init__(self, path: Path) -> None:
        self.path, self.reads = path, 0

    def examples(self) -> Iterator[Example]:
        self.reads += 1
        for number, row in read_json_lines(self.path, COLUMNS):
            choices = None if row["choices"] is None else tuple(row["choices"])
            yield Example(
                id=str(number), task="toy", prompt=row["input"], target="", choices=choices, references=choices
            )

    def build(self, **options: Any) -> Any:
        return build_dataset(self.examples, reader="toy", version=1, files=[self.path], options=options)


def test_a_data_set_is_cached_until_its_file_or_an_option_changes(
    tmp_path: Path, hf_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", GOOD + '{"input": "乙", "choices": ["是", "否"]}\n')
    source = Source(path)
    data = source.build()
    assert data.column_names == ["id", "task", "prompt", "target", "group", "choices", "references"]
    assert [to_example(row) for row in data] == list(Source(path).examples())
    assert source.build()[1]["choices"] == ["是", "否"]
    assert source.reads == 1
    assert len(source.build(kinds=["a"])) == 2
    assert source.reads == 2
    stamp = path.stat()
    write(path, GOOD + '{"input": "丙", "choices": ["是", "否"]}\n')
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert source.build()[1]["prompt"] == "丙"
    assert source.reads == 3
    assert capsys.readouterr().err == ""


def test_an_error_while_reading_is_passed_on_unchanged_and_leaves_no_cache(tmp_path: Path, hf_cache: Path) -> None:
    source = Source(write(tmp_path / "a.jsonl", GOOD + "?"))
    for _ in range(2):
        with pytest.raises(DataError, match="line 2"):
            source.build()
    assert source.reads == 2
    with pytest.raises(DataError, match="no such file"):
        Source(tmp_path / "b.jsonl").build()


def test_a_column_of_choices_may_be_null_throughout(tmp_path: Path, hf_cache: Path) -> None:
    data = Source(write(tmp_path / "a.jsonl", GOOD)).build()
    assert data[0]["choices"] is None
    assert data.features["choices"].feature.dtype == "string"
