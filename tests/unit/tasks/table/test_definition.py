"""A suite's file: what it may say, and one line for each way to get it wrong."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import DataError, HarnessError, UsageError
from tasks.table.definition import parse_definition, read_definition
from tasks.table.suite import TableSuite

GOOD = """
name = "reviews"
[task.sentiment]
train = "train.jsonl"
test = "test.jsonl"
prompt = "{{ review }} Good or bad?"
target_column = "label"
choices = ["good", "bad"]
metrics = ["accuracy", "macro_f1"]
"""
LINES = [{"review": f"review {i}", "label": ("good", "bad")[i % 2], "id": i} for i in range(6)]


def write(folder: Path, text: str = GOOD, lines: list[dict[str, object]] | None = None) -> Path:
    """A suite's file with two splits of the same lines."""
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines or LINES))
    file = folder / "suite.toml"
    file.write_text(text, encoding="utf-8")
    return file


# (what is replaced, by what, words of the error)
WRONG_FILES = [
    ('name = "reviews"', "", ["name is missing", 'name = "reviews"']),
    ('name = "reviews"', 'name = "a/b"', ["name = 'a/b'", "letters"]),
    ('name = "reviews"', 'name = "reviews', ["not valid TOML", "line 2"]),
    ('name = "reviews"', 'name = "reviews"\nmetrics = ["accuracy"]', ["unknown key 'metrics'", "[task.NAME]"]),
    ("[task.sentiment]", "[tasks.sentiment]", ["unknown key 'tasks'", "Did you mean 'task'?"]),
    ("[task.sentiment]", "[task.sentiment]\nmetric = 1", ["'task.sentiment.metric'", "Did you mean 'metrics'"]),
    ("[task.sentiment]", '[task."a/b"]', ["task.'a/b'", "letters"]),
    ("[task.sentiment]", "[task.a]\n[task.a]", ["two tasks have the name 'a'", "line 4"]),
    ('train = "train.jsonl"\ntest = "test.jsonl"', "", ["task.sentiment.train is missing", "train.jsonl"]),
    ('"train.jsonl"', '"/data/train.jsonl"', ["train = '/data/train.jsonl'", "relative"]),
    ('"train.jsonl"', '"train.xlsx"', ["train = 'train.xlsx'", ".csv"]),
    ('"train.jsonl"', "3", ["task.sentiment.train = 3", "list of texts"]),
    ('test = "test.jsonl"', "test_share = 1.5", ["test_share = 1.5", "below 1"]),
    ('test = "test.jsonl"', 'test = "test.jsonl"\ntest_share = 0.1', ["test_share = 0.1", "Remove one"]),
    ('test = "test.jsonl"', "test_share = 0.5\ndev_share = 0.5", ["nothing is left to train on"]),
    ('test = "test.jsonl"', 'config = "x"', ["config = 'x'", "hub"]),
    ('test = "test.jsonl"', 'hub = "me/data"', ["hub = 'me/data'", "name a commit"]),
    ('test = "test.jsonl"', 'hub = "data"', ["hub = 'data'", "ORGANISATION/NAME"]),
    ('prompt = "{{ review }} Good or bad?"', "", ["task.sentiment.prompt is missing", "prompt_column"]),
    ("{{ review }}", "{{ review", ["task.sentiment.prompt: line 1 of the template", "{{ name }}"]),
    ("{{ review }}", "{review}", ["uses no column", "{{ name }}"]),
    ('target_column = "label"', "", ["task.sentiment.target is missing", "target_column"]),
    ('target_column = "label"', 'target_column = "label"\ntarget = "{{ label }}"', ["both given", "Remove one"]),
    ('["good", "bad"]', '["good"]', ["choices = ['good']", "two or more"]),
    ('["good", "bad"]', '["good", "bad", "bad"]', ["'bad' is listed twice"]),
    ('["good", "bad"]', '["good ", "bad"]', ["'good '", "white space"]),
    ('["good", "bad"]', '[1, 2]', ["task.sentiment.choices.0 = 1", "text in quotes"]),
    ('"accuracy", ', '"acuracy", ', ["unknown metric 'acuracy'", "Did you mean 'accuracy'?"]),
    ('["accuracy", "macro_f1"]', "[]", ["metrics is missing", "accuracy"]),
    ('["accuracy", "macro_f1"]', '["accuracy"]\nheadline = "f1"', ["headline = 'f1'", "Choose from accuracy"]),
    ('["accuracy", "macro_f1"]', '["accuracy"]\nextract = "("', ["extract = '('", "not a regular expression"]),
    ('["accuracy", "macro_f1"]', '["accuracy"]\nextract = "(a)(b)"', ["2 groups", "(?:…)"]),
    ('["accuracy", "macro_f1"]', '["accuracy"]\nseparator = ";"', ["only set_f1 uses it"]),
    ('["accuracy", "macro_f1"]', '["accuracy"]\ntolerance = 1', ["only numeric_match uses it"]),
    ('["accuracy", "macro_f1"]', '["accuracy"]\nignore_case = 1', ["ignore_case = 1", "true or false"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), WRONG_FILES, ids=[words[0] for *_, words in WRONG_FILES])
def test_a_wrong_file_is_one_line_with_file_key_and_remedy(
    tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    assert old in GOOD
    file = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(UsageError) as caught:
        TableSuite.from_file(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


# (what is replaced, by what, the lines of the data or None, words of the error)
WRONG_DATA = [
    ("{{ review }}", "{{ reveiw }}", None, ["train.jsonl, line 1", "task.sentiment.prompt", "Did you mean 'review'?"]),
    ("{{ review }}", "{{ review / 2 }}", None, ["line 1", "task.sentiment.prompt", "TypeError"]),
    ("{{ review }}", "{{ review.title.x }}", None, ["line 1", "task.sentiment.prompt", "Correct the template"]),
    ("{{ review }}", "{{ review }}", [{"review": None, "label": "good"}], ["the value of review is null", "or ''"]),
    ("{{ review }} Good or bad?", "{{ review }}", [{"review": " ", "label": "good"}], ["the prompt is blank"]),
    ('"label"', '"lable"', None, ["target_column", "no column 'lable'", "Did you mean 'label'?", "review, label, id"]),
    ('"label"', '"label"', [{"review": "r", "label": ["good"]}], ["target_column", "['good'], not a text", "template"]),
    ('"bad"]', '"bad", "neutral"]', None, ["choices: 'neutral' is not the target of any line", "'bad', 'good'"]),
    ('["good", "bad"]', '["Good", "bad"]', None, ["choices: 'Good' is not the target", "Correct the choice"]),
    ('choices = ["good", "bad"]', 'choices_column = "id"', None, ["choices_column", "'id' is 0, not a list of texts"]),
    ("[task.sentiment]", '[task.sentiment]\nid_column = "label"', None, ["line 3", "also the id of", "line 1"]),
    ("[task.sentiment]", '[task.sentiment]\nid_column = "idd"', None, ["no column 'idd'", "Did you mean 'id'"]),
    ("[task.sentiment]", "[task.sentiment]\nwhere = { labl = 1 }", None, ["where.labl", "Did you mean 'label'?"]),
    ('"train.jsonl"', '"trian.jsonl"', None, ["trian.jsonl: no such file", "Did you mean 'train.jsonl'"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "lines", "words"), WRONG_DATA, ids=[str(i) + w[-1] for i, (*_, w) in enumerate(WRONG_DATA)]
)
@pytest.mark.usefixtures("hf_cache")
def test_a_file_that_does_not_fit_its_data_is_one_line_with_file_key_and_remedy(
    tmp_path: Path, old: str, new: str, lines: list[dict[str, object]] | None, words: list[str]
) -> None:
    assert old in GOOD
    suite = TableSuite.from_file(write(tmp_path, GOOD.replace(old, new), lines))
    with pytest.raises(DataError) as caught:
        suite.read(str(tmp_path), "train")
    message = str(caught.value)
    assert message.startswith(str(tmp_path))
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_file_itself_can_be_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="harness new suite"):
        read_definition(tmp_path / "suite.toml")
    (tmp_path / "suite.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_definition(tmp_path / "suite.toml")


def test_comments_prose_and_defaults_do_not_identify_a_suite(tmp_path: Path) -> None:
    plain = TableSuite.from_file(write(tmp_path))
    same = GOOD.replace(
        "[task.sentiment]", '# a comment\nabout = "a"\n[task.sentiment]\nabout = "b"\nignore_case = false'
    )
    assert TableSuite.from_file(write(tmp_path, same)) == plain
    assert TableSuite.from_file(write(tmp_path, GOOD.replace("Good or bad", "Bad or good"))) != plain


def test_the_content_of_a_suite_is_a_definition_with_the_same_content(tmp_path: Path) -> None:
    content = TableSuite.from_file(write(tmp_path)).definition
    as_recorded = json.loads(json.dumps(content))
    assert parse_definition(as_recorded, "a record").content() == content == as_recorded


def test_the_fingerprint_changes_with_data_and_definition_and_not_with_the_folder(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    first = TableSuite.from_file(write(one)).fingerprint(str(one))
    assert set(first) == {"definition", "train.jsonl", "test.jsonl"}
    assert TableSuite.from_file(write(two)).fingerprint(str(two)) == first
    other = TableSuite.from_file(write(two, lines=LINES[1:])).fingerprint(str(two))
    assert {part for part in first if first[part] != other[part]} == {"train.jsonl", "test.jsonl"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from(
    ["train", "test_share", "hub", "prompt", "target", "choices", "metrics", "headline", "extract", "where", "other"]
)


@settings(deadline=None)  # importing libraries is part of the first example
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.dictionaries(st.sampled_from(["name", "about", "x"]), VALUES))
def test_any_content_is_a_definition_or_an_error_of_ours(task: dict[str, object], top: dict[str, object]) -> None:
    content = {**top, "task": {"a": {"prompt_column": "p", "metrics": ["accuracy"], **task}}}
    with contextlib.suppress(HarnessError):
        parse_definition(content, "a file")


def test_the_file_of_the_page_is_a_definition_and_every_key_and_metric_is_explained_there() -> None:
    import re
    import tomllib

    from tasks.table.keys import TaskKeys
    from tasks.table.metrics import METRICS

    page = (Path(__file__).parents[4] / "docs" / "your_own_suite.md").read_text(encoding="utf-8")
    (content,) = (t for t in re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if "[task." in t)
    shown = parse_definition(tomllib.loads(content), "the page")
    written = read_definition(Path(__file__).parents[4] / "tasks" / "table" / "example" / "suite.toml")
    assert {n: k.metrics for n, k in shown.task.items()} == {n: k.metrics for n, k in written.task.items()}
    missing = [name for name in (*TaskKeys.model_fields, *METRICS) if f"`{name}`" not in page]
    assert not missing
