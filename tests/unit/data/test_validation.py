"""What `harness validate` finds in data with known flaws."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from harness.data.encoding import Encoder, generation_limits
from harness.data.rows import group
from harness.data.validation import validate
from harness.data.validation_report import (
    BLANK,
    CUT,
    DUPLICATE,
    EMPTY,
    FLAWS,
    LEAK,
    STRANGER,
    UNPARSED,
    Finding,
    ValidationReport,
    render,
    to_json,
)
from harness.errors import DataError, UsageError
from harness.task import NOT_PARSED, Answer, Example, Protocol, Statistics, Suite, Task


def _parse(text: str, example: Example) -> Answer:
    return NOT_PARSED if "?" in text else text


def _statistics(golds: Sequence[Answer], answers: Sequence[Answer]) -> Statistics:
    return Statistics(per_example=np.ones((len(golds), 1)), values=lambda sums: {"ones": sums[..., 0]})


def _task(name: str) -> Task:
    return Task(
        name=name,
        version=1,
        kind="label",
        protocols={"strict": Protocol(parse=_parse, statistics=_statistics, headline="ones")},
        invented=lambda answer, example: answer is not NOT_PARSED and answer not in (example.choices or (answer,)),
    )


Row = tuple[str, str, str, str]  # id, task, prompt, target


@dataclass(frozen=True, kw_only=True)
class Toy(Suite):
    """Two tasks whose rows are given."""

    name: ClassVar[str] = "toy"
    version: ClassVar[int] = 1
    content: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    broken: str = ""
    choices: tuple[str, ...] | None = None

    @property
    def tasks(self) -> Mapping[str, Task]:
        return {name: _task(name) for name in ("a", "b")}

    def splits(self, source: str) -> Sequence[str]:
        return (*self.content, *([self.broken] if self.broken else []))

    def read(self, source: str, split: str) -> Any:
        from datasets import Dataset, Features, List, Value

        if split == self.broken:
            raise DataError(f"{source}/{split}.json, line 3: no task 'c'")
        names = ("id", "task", "prompt", "target")
        columns: dict[str, Any] = {n: [row[i] for row in self.content[split]] for i, n in enumerate(names)}
        columns["choices"] = [self.choices] * len(self.content[split])
        features = Features({**{n: Value("string") for n in names}, "choices": List(Value("string"))})
        return Dataset.from_dict(columns, features=features)

    def locate(self, source: str, split: str, ids: Iterable[str]) -> Mapping[str, str]:
        numbers = {row[0]: i for i, row in enumerate(self.content[split], 1)}
        return {key: f"{source}/{split}:{numbers[key]}" for key in ids}


class Characters:
    """A tokenizer of one token per character, and one more before a prompt."""

    def __call__(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * add_special_tokens + [ord(c) for c in text] for text in texts]}


def look(content: Mapping[str, Sequence[Row]], **options: Any) -> ValidationReport:
    suite = {k: options.pop(k) for k in ("broken", "choices") if k in options}
    return validate(Toy(content=content, **suite), "here", **options)


def of(report: ValidationReport, kind: str) -> list[Finding]:
    return [f for f in report.findings if f.kind == kind]


def test_clean_data_have_no_flaw() -> None:
    report = look({"train": [("1", "a", "甲", "x"), ("2", "b", "乙", "x")], "test": [("3", "a", "丙", "y")]})
    assert report.findings == ()
    assert set(report.totals.values()) == {0}
    assert [(r.task, r.split, r.n) for r in report.rows] == [
        ("a", "train", 1),
        ("b", "train", 1),
        ("a", "test", 1),
        ("b", "test", 0),
    ]
    assert report.remarks == ("test: no rows of b", "test: fewer than 50 rows, too few for a leaderboard's mean: a (1)")
    assert "No flaw was found." in render(report)


def test_every_flaw_is_named_with_id_and_place() -> None:
    report = look(
        {
            "train": [("1", "a", "甲", "x"), ("2", "a", " ", "x"), ("3", "b", "乙", ""), ("4", "b", "甲 ", "z")],
            "test": [("5", "a", "甲", "x"), ("6", "b", "乙", "?"), ("7", "a", "丙", "w")],
        },
        choices=("x", "z"),
    )
    found = {(f.kind, f.split, f.task, f.id, f.where, f.note) for f in report.findings}
    assert found == {
        (BLANK, "train", "a", "2", "here/train:2", None),
        (EMPTY, "train", "b", "3", "here/train:3", None),
        (DUPLICATE, "train", "b", "4", "here/train:4", "as 1 (train), another target"),
        (LEAK, "test", "a", "5", "here/test:1", "as 1 (train), same target"),
        (LEAK, "test", "b", "6", "here/test:2", "as 3 (train), another target"),
        (UNPARSED, "test", "b", "6", "here/test:2", None),
        (STRANGER, "test", "a", "7", "here/test:3", None),
    }
    assert report.totals == {BLANK: 1, EMPTY: 1, DUPLICATE: 1, LEAK: 2, UNPARSED: 1, STRANGER: 1, CUT: 0}
    text = render(report)
    assert all(f.where in text for f in report.findings if f.where)
    assert "as 1 (train), another target" in text


def test_flaws_are_counted_in_full_and_listed_up_to_a_limit() -> None:
    report = look({"train": [(str(i), "a", "甲", "?") for i in range(30)]}, limit=4)
    assert report.totals[UNPARSED] == 30
    assert report.totals[DUPLICATE] == 29
    assert [f.id for f in of(report, DUPLICATE)] == ["1", "2", "3", "4"]
    assert "29, of which 4 here" in render(report)


def test_a_leak_into_two_splits_counts_once_and_names_the_training_row() -> None:
    report = look({s: [(s, "a", "甲", "x")] for s in ("train", "dev", "test")})
    assert [(f.split, f.note) for f in of(report, LEAK)] == [
        ("dev", "as train (train), same target"),
        ("test", "as train (train), same target"),
    ]
    assert report.totals[LEAK] == 2


def test_withheld_targets_are_one_remark_and_not_a_flaw_of_each_row() -> None:
    report = look({"train": [("1", "a", "甲", "x")], "test": [("2", "a", "乙", ""), ("3", "a", "丙", " ")]})
    assert report.withheld == ("test",)
    assert report.findings == ()
    assert report.totals[EMPTY] == 0
    assert "test: no row has a target" in render(report)


def test_a_split_that_cannot_be_read_does_not_hide_the_others() -> None:
    report = look({"train": [("1", "a", "甲", "?")]}, broken="test")
    assert report.errors == {"test": "here/test.json, line 3: no task 'c'"}
    assert report.totals[UNPARSED] == 1
    text = render(report)
    assert "test cannot be read: here/test.json, line 3" in text
    assert "No flaw" not in text


def test_a_source_without_splits_is_not_without_flaws(tmp_path: Path) -> None:
    class Nothing(Toy):
        def read(self, source: str, split: str) -> Any:
            raise DataError(f"{source}/{split}.json: no such file")

    report = validate(Nothing(), "here")
    assert report.errors == {"train": "here/train.json: no such file"}
    assert "No flaw" not in render(report)


def test_lengths_are_those_of_the_tokenizer() -> None:
    rows = [(str(n), "a", "甲" * n, "x" * (n % 5 + 1)) for n in range(1, 201)]
    report = look({"train": rows}, tokenizer=Characters())
    a, b = report.rows
    assert b.prompt is None
    assert a.prompt is not None
    assert a.target is not None
    lengths = np.arange(1, 201) + 1
    assert a.prompt.mean == pytest.approx(lengths.mean())
    assert (a.prompt.p50, a.prompt.p95, a.prompt.p99, a.prompt.max) == (102, 192, 200, 201)
    assert (a.target.p50, a.target.max) == (3, 5)
    assert a.counts[CUT] is None
    assert "Lengths in tokens" in render(report)


def test_rows_are_counted_as_cut_exactly_where_training_cuts_them() -> None:
    draw = np.random.default_rng(0)
    rows = [
        (str(i), "ab"[i % 2], "甲" * int(draw.integers(1, 60)), "x" * int(draw.integers(1, 30))) for i in range(300)
    ]
    suite = Toy(content={"train": rows})
    report = validate(suite, "here", Characters(), 50)
    dataset = suite.read("here", "train")
    train = group(dataset, "train", ["a", "b"])
    limits = generation_limits(Characters(), train, ["a", "b"], None)
    encoder = Encoder(tokenizer=Characters(), style="plain", eos=0, max_length=50, limits=limits)
    for row in report.rows:
        examples = train.of(row.task)
        short = [len(e.target) + 1 > len(r.target) for e, r in zip(examples, encoder.rows(examples), strict=True)]
        cut = [r.cut for r in encoder.rows(examples)]
        expected = sum(c or s for c, s in zip(cut, short, strict=True))
        assert row.counts[CUT] == expected
        assert 0 < expected < row.n


def test_a_length_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(UsageError, match="name the model"):
        look({"train": []}, max_length=10)


def test_the_report_as_json_says_the_same() -> None:
    report = look({"train": [("1", "a", "甲", "?")]}, tokenizer=Characters(), max_length=20)
    told = json.loads(to_json(report))
    assert told["totals"] == report.totals
    assert set(told["totals"]) == set(FLAWS)
    assert told["rows"][0]["prompt"]["max"] == 2
    assert told["rows"][1]["prompt"] is None
    assert told["findings"][0]["where"] == "here/train:1"


def test_memory_does_not_grow_with_the_number_of_texts() -> None:
    def peak(n: int) -> int:
        suite = Toy(content={"train": [(str(i), "a", f"{i:09}" * 100, "x" * 500) for i in range(n)]})
        dataset = suite.read("here", "train")

        class Ready(Toy):
            def read(self, source: str, split: str) -> Any:
                return dataset

        tracemalloc.start()
        validate(Ready(content=suite.content), "here")
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(1000)  # imports
    assert peak(9000) - peak(3000) < 100 * 6000


def test_real_data_have_no_flaw(shared_data: Path, hf_cache: Path) -> None:
    from harness.registry import suite_class

    for name in ("firefly", "promptcblue"):
        report = validate(suite_class(name)(), str(shared_data / name))
        assert report.errors == {}
        assert {kind: n for kind, n in report.totals.items() if n} == {}, render(report)
        assert sum(row.n for row in report.rows) > 9000
