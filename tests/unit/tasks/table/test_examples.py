"""Lines of data as examples: the formats of files, splits by content, targets that are withheld."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import DataError
from tasks.common.data_files import read_lines
from tasks.table.examples import TaskReader, assigned
from tasks.table.keys import TaskKeys

LINES = [{"q": "1 + 1", "a": "2"}, {"q": 'a "quoted", text', "a": "two\nlines"}, {"q": "猫", "a": "cat"}]


def reader(folder: Path, **keys: Any) -> TaskReader:
    basic: dict[str, Any] = {"prompt": "{{ q }}?", "target_column": "a", "metrics": ("accuracy",)}
    return TaskReader(task="t", keys=TaskKeys(**{**basic, **keys}), folder=folder)


def jsonl(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write(path: Path) -> Path:
    """The same lines in the format of the name."""
    table = pd.DataFrame(LINES)
    match path.suffix:
        case ".jsonl":
            jsonl(path, LINES)
        case ".json":
            path.write_text(json.dumps(LINES), encoding="utf-8")
        case ".parquet":
            table.to_parquet(path)
        case suffix:
            table.to_csv(path, index=False, sep={".csv": ",", ".tsv": "\t"}[suffix])
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_lines(tmp_path: Path, ending: str) -> None:
    assert [dict(columns) for _, columns in read_lines(write(tmp_path / f"data{ending}"))] == LINES


def test_numbers_lists_and_null_in_parquet_are_plain_values(tmp_path: Path) -> None:
    pd.DataFrame({"n": [1, None], "l": [["a", "b"], None], "s": ["x", None]}).to_parquet(tmp_path / "data.parquet")
    first, second = (dict(columns) for _, columns in read_lines(tmp_path / "data.parquet"))
    assert first == {"n": 1, "l": ["a", "b"], "s": "x"}
    assert second == {"n": None, "l": None, "s": None}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_csv_may_have_any_end_and_quoted_cells_may_span_lines(tmp_path: Path, end: str) -> None:
    (tmp_path / "data.csv").write_bytes(f'\ufeffq,a{end}"1{end}2",x{end}{end}3,你{end}'.encode())
    assert list(read_lines(tmp_path / "data.csv")) == [(3, {"q": f"1{end}2", "a": "x"}), (5, {"q": "3", "a": "你"})]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.csv", "q,a\n1,2,3\n", ["line 2", "3 cells", "quotes"]),
        ("d.csv", 'q,a\n"1,2\n', ["line", "quotes"]),
        ("d.csv", "q,q\n1,2\n", ["line 1", "two columns have the name 'q'"]),
        ("d.csv", "q,\n1,2\n", ["line 1", "a column has no name"]),
        ("d.csv", "q\ta\n1\t2\n", ["line 1", "d.tsv"]),
        ("d.csv", "", ["no lines of data"]),
        ("d.csv", b"q,a\n1,2\n\xc4\xe3,3\n", ["line 3", "byte 1 is not UTF-8", "iconv -f GB18030", "> utf8.csv"]),
        ("d.tsv", b"q\ta\n\xc4\xe3\t3\n", ["line 2", "> utf8.tsv"]),
        ("d.csv", b"\x1f\x8b\x08", ["gzip -dc < d.csv"]),
        ("d.csv", "version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
        ("d.json", "[1]", ["item 1", "expected a JSON object"]),
        ("d.json", "[{]", ["item 1", "broken JSON"]),
        ("d.json", '[{"q": "\\ud800"}]', ["item 1", "half a character"]),
        ("d.json", "[]", ["the array is empty"]),
        ("d.jsonl", "3\n", ["line 1", "expected a JSON object, not"]),
        ("d.parquet", "PAR", ["not a Parquet file"]),
    ],
)
def test_a_broken_file_is_one_line_with_its_name(
    tmp_path: Path, name: str, content: str | bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        list(read_lines(tmp_path / name))
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@settings(deadline=None)  # importing libraries is part of the first example
@given(st.binary(max_size=200), st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet"]))
def test_any_bytes_are_lines_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, ending: str
) -> None:
    file = tmp_path_factory.mktemp("bytes") / f"data{ending}"
    file.write_bytes(data)
    with contextlib.suppress(DataError):
        assert all(isinstance(columns, dict) for _, columns in read_lines(file))


@settings(deadline=None)  # importing libraries is part of the first example
@given(st.binary(min_size=32, max_size=32), st.floats(0, 0.4), st.floats(0, 0.4))
def test_a_content_hash_is_in_one_split_and_a_larger_share_only_adds_to_it(
    digest: bytes, dev: float, test: float
) -> None:
    split = assigned(digest, dev=dev, test=test)
    if split == "test":
        assert assigned(digest, dev=dev, test=test + 0.1) == "test"
    assert assigned(digest, dev=0, test=0) == "train"


def test_the_shares_of_many_contents_are_about_those_of_the_file() -> None:
    splits = [assigned(hashlib.sha256(str(i).encode()).digest(), dev=0.1, test=0.2) for i in range(4000)]
    assert splits.count("dev") == pytest.approx(400, abs=80)
    assert splits.count("test") == pytest.approx(800, abs=100)


def test_one_file_is_divided_whatever_the_order_of_its_lines(tmp_path: Path) -> None:
    lines = [{"q": f"question {i // 2}", "a": str(i)} for i in range(60)]

    def splits(order: list[dict[str, str]]) -> dict[str, set[str]]:
        jsonl(tmp_path / "all.jsonl", order)
        of = reader(tmp_path, train=("all.jsonl",), dev_share=0.2, test_share=0.3)
        return {split: {e.example.target for e in of.examples(split)} for split in ("train", "dev", "test")}

    found = splits(lines)
    assert found == splits(lines[::-1])
    assert sorted(map(int, set().union(*found.values()))) == list(range(60))
    assert sum(map(len, found.values())) == 60
    for targets in found.values():  # two lines with the same question are in the same split
        assert {int(t) ^ 1 for t in targets} == {int(t) for t in targets}


def test_dev_is_taken_from_train_and_test_has_its_own_file(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"q": str(i), "a": "x"} for i in range(40)])
    jsonl(tmp_path / "b.jsonl", [{"q": str(i), "a": "y"} for i in range(5)])
    of = reader(tmp_path, train=("a.jsonl",), test=("b.jsonl",), dev_share=0.3)
    sizes = {split: len(list(of.examples(split))) for split in ("train", "dev", "test")}
    assert sizes["test"] == 5
    assert sizes["train"] + sizes["dev"] == 40
    assert 0 < sizes["dev"] < 30


def test_ids_have_the_task_and_the_line_and_differ_between_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        jsonl(tmp_path / f"{name}.jsonl", LINES)
    found = [e.example.id for e in reader(tmp_path, train=("a.jsonl", "b.jsonl")).examples("train")]
    assert found == ["t-1.1", "t-1.2", "t-1.3", "t-2.1", "t-2.2", "t-2.3"]
    assert [e.example.id for e in reader(tmp_path, train=("a.jsonl",)).examples("train")] == ["t-1", "t-2", "t-3"]


def test_the_targets_of_test_may_be_withheld_and_those_of_train_may_not(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"q": "1"}])
    of = reader(tmp_path, train=("a.jsonl",), test=("a.jsonl",))
    assert [e.example.target for e in of.examples("test")] == [""]
    with pytest.raises(DataError, match="no column 'a'"):
        list(of.examples("train"))


def test_where_chooses_lines_and_compares_cells_of_csv_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q,a,n\nx,1,7\ny,2,8\n")
    of = reader(tmp_path, train=("a.csv",), where={"n": 8})
    assert [e.example.prompt for e in of.examples("train")] == ["y?"]


def test_a_template_may_index_labels_and_test_for_columns(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"q": "x", "label": 1}, {"q": "y", "label": 0, "hint": "h"}])
    prompt = "{{ q }}{% if hint is defined %} ({{ hint }}){% endif %}"
    of = reader(tmp_path, train=("a.jsonl",), prompt=prompt, target="{{ ['no', 'yes'][label] }}", target_column=None)
    found = [e.example for e in of.examples("train")]
    assert [(e.prompt, e.target) for e in found] == [("x", "yes"), ("y (h)", "no")]


def test_a_template_cannot_reach_python(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", LINES)
    of = reader(tmp_path, train=("a.jsonl",), prompt="{{ q.__class__.__mro__ }}")
    with pytest.raises(DataError, match="unsafe"):
        list(of.examples("train"))
