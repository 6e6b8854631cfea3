"""`harness validate` on data with known flaws."""

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
from harness.data.splits import group
from harness.data.validation import validate
from harness.data.validation_report import (
    BLANK_PROMPT,
    DUPLICATE,
    EMPTY_TARGET,
    FLAWS,
    LEAK,
    LEAKED_CONTENT,
    NOT_OFFERED,
    TRUNCATED,
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
    return Statistics(per_unit=np.ones((len(golds), 1)), values=lambda sums: {"ones": sums[..., 0]})


def _task(name: str) -> Task:
    return Task(
        name=name,
        version=1,
        kind="label",
        protocols={"strict": Protocol(parse=_parse, statistics=_statistics, headline="ones")},
        invented=lambda answer, example: answer is not NOT_PARSED and answer not in (example.choices or (answer,)),
    )


Line = tuple[str, str, str, str]  # id, task, prompt, target


@dataclass(frozen=True, kw_only=True)
class Toy(Suite):
    """Two tasks with the given examples."""

    name: ClassVar[str] = "toy"
    version: ClassVar[int] = 1
    content: Mapping[str, Sequence[Line]] = field(default_factory=dict)
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
        columns: dict[str, Any] = {n: [line[i] for line in self.content[split]] for i, n in enumerate(names)}
        columns["choices"] = [self.choices] * len(self.content[split])
        features = Features({**{n: Value("string") for n in names}, "choices": List(Value("string"))})
        return Dataset.from_dict(columns, features=features)

    def locate(self, source: str, split: str, ids: Iterable[str]) -> Mapping[str, str]:
        numbers = {line[0]: i for i, line in enumerate(self.content[split], 1)}
        return {key: f"{source}/{split}:{numbers[key]}" for key in ids}


class Characters:
    """A tokenizer of one token per character, and one more before a prompt."""

    def __call__(
        self, texts: list[str], *, add_special_tokens: bool, verbose: bool = True
    ) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * add_special_tokens + [ord(c) for c in text] for text in texts]}


def validated(content: Mapping[str, Sequence[Line]], **options: Any) -> ValidationReport:
    suite = {k: options.pop(k) for k in ("broken", "choices") if k in options}
    return validate(Toy(content=content, **suite), "here", **options)


def of_kind(report: ValidationReport, kind: str) -> list[Finding]:
    return [f for f in report.findings if f.kind == kind]


def test_data_without_flaws_are_reported_as_such() -> None:
    report = validated({"train": [("1", "a", "甲", "x"), ("2", "b", "乙", "x")], "test": [("3", "a", "丙", "y")]})
    assert report.findings == ()
    assert set(report.totals.values()) == {0}
    assert [(r.task, r.split, r.n) for r in report.tasks] == [
        ("a", "train", 1),
        ("b", "train", 1),
        ("a", "test", 1),
        ("b", "test", 0),
    ]
    assert report.remarks == (
        "test: no examples of b",
        "test: fewer than 50 examples, so a leaderboard's mean leaves these tasks out: a (1)",
    )
    assert "No flaws found." in render(report)


def test_every_flaw_is_named_with_id_and_place() -> None:
    report = validated(
        {
            "train": [("1", "a", "甲", "x"), ("2", "a", " ", "x"), ("3", "b", "乙", ""), ("4", "b", "甲 ", "z")],
            "test": [("5", "a", "甲", "x"), ("6", "b", "乙", "?"), ("7", "a", "丙", "w")],
        },
        choices=("x", "z"),
    )
    findings = {(f.kind, f.split, f.task, f.id, f.where, f.note) for f in report.findings}
    assert findings == {
        (BLANK_PROMPT, "train", "a", "2", "here/train:2", None),
        (EMPTY_TARGET, "train", "b", "3", "here/train:3", None),
        (DUPLICATE, "train", "b", "4", "here/train:4", "same prompt as 1 (train), with another target"),
        (LEAK, "test", "a", "5", "here/test:1", "same prompt as 1 (train), with the same target"),
        (LEAK, "test", "b", "6", "here/test:2", "same prompt as 3 (train), with another target"),
        (UNPARSED, "test", "b", "6", "here/test:2", None),
        (NOT_OFFERED, "test", "a", "7", "here/test:3", None),
    }
    assert report.totals == {
        BLANK_PROMPT: 1,
        EMPTY_TARGET: 1,
        DUPLICATE: 1,
        LEAK: 2,
        LEAKED_CONTENT: 0,
        UNPARSED: 1,
        NOT_OFFERED: 1,
        TRUNCATED: 0,
    }
    text = render(report)
    assert all(f.where in text for f in report.findings if f.where)
    assert "same prompt as 1 (train), with another target" in text


def test_a_content_in_another_template_is_named_as_a_leak_of_content() -> None:
    templates = ("Which intent has this?\n{}", "{}\nIts intent is:")
    queries = [f"how long does illness number {i} last" for i in range(20)]
    train = [
        (f"{t}.{i}", "a", templates[t].format(q), "x")
        for t in (0, 1)
        for i, q in enumerate(queries[:15] if t else queries)
    ]
    report = validated({"train": train, "test": [("new", "a", templates[1].format(queries[17]), "x")]})
    assert report.totals[LEAK] == 0
    assert [(f.kind, f.id, f.note) for f in report.findings if f.split == "test"] == [
        (LEAKED_CONTENT, "new", "same content as 0.17 (train), with the same target")
    ]


def test_flaws_are_counted_in_full_and_listed_up_to_a_limit() -> None:
    report = validated({"train": [(str(i), "a", "甲", "?") for i in range(30)]}, limit=4)
    assert report.totals[UNPARSED] == 30
    assert report.totals[DUPLICATE] == 29
    assert [f.id for f in of_kind(report, DUPLICATE)] == ["1", "2", "3", "4"]
    assert "duplicate prompt (29, 4 listed)" in render(report)


def test_a_leak_into_two_splits_counts_once_and_names_the_training_example() -> None:
    report = validated({s: [(s, "a", "甲", "x")] for s in ("train", "dev", "test")})
    assert [(f.split, f.note) for f in of_kind(report, LEAK)] == [
        ("dev", "same prompt as train (train), with the same target"),
        ("test", "same prompt as train (train), with the same target"),
    ]
    assert report.totals[LEAK] == 2


def test_withheld_targets_are_one_remark_and_not_a_flaw_of_each_example() -> None:
    report = validated({"train": [("1", "a", "甲", "x")], "test": [("2", "a", "乙", ""), ("3", "a", "丙", " ")]})
    assert report.withheld == ("test",)
    assert report.findings == ()
    assert report.totals[EMPTY_TARGET] == 0
    assert "test: no example has a target" in render(report)


def test_training_examples_without_targets_are_flaws_although_all_of_them_lack_one() -> None:
    report = validated({"train": [("1", "a", "甲", ""), ("2", "a", "乙", "")], "test": [("3", "a", "丙", "x")]})
    assert report.withheld == ()
    assert report.totals[EMPTY_TARGET] == 2
    assert "here/train, line 1: no example of the train split has a target" in report.errors["train"]
    assert "No flaws" not in render(report)


def test_a_split_that_cannot_be_read_does_not_hide_the_others() -> None:
    report = validated({"train": [("1", "a", "甲", "?")]}, broken="test")
    assert report.errors == {"test": "here/test.json, line 3: no task 'c'"}
    assert report.totals[UNPARSED] == 1
    text = render(report)
    assert "test cannot be used: here/test.json, line 3" in text
    assert "No flaws" not in text


def test_examples_of_unknown_tasks_are_an_error_unless_tasks_are_chosen() -> None:
    content = {"train": [("1", "a", "甲", "x"), ("2", "A2", "乙", "x")], "test": [("3", "b", "丙", "y")]}
    report = validated(content)
    assert "here/train, line 2: suite toy has no task 'A2'" in report.errors["train"]
    chosen = validated(content, tasks=["a"])
    assert chosen.errors == {}
    assert [(t.task, t.split, t.n) for t in chosen.tasks] == [("a", "train", 1), ("a", "test", 0)]
    assert chosen.remarks[0] == "train: 1 example of tasks that toy does not have left out (A2 1)"
    assert chosen.withheld == ()


def test_a_source_without_splits_is_not_without_flaws(tmp_path: Path) -> None:
    class Nothing(Toy):
        def read(self, source: str, split: str) -> Any:
            raise DataError(f"{source}/{split}.json: no such file")

    report = validate(Nothing(), "here")
    assert report.errors == {"train": "here/train.json: no such file"}
    assert "No flaws" not in render(report)


def test_lengths_are_those_of_the_tokenizer() -> None:
    lines = [(str(n), "a", "甲" * n, "x" * (n % 5 + 1)) for n in range(1, 201)]
    report = validated({"train": lines}, tokenizer=Characters())
    a, b = report.tasks
    assert b.prompt is None
    assert a.prompt is not None
    assert a.target is not None
    lengths = np.arange(1, 201) + 1
    assert a.prompt.mean == pytest.approx(lengths.mean())
    assert (a.prompt.p50, a.prompt.p95, a.prompt.p99, a.prompt.max) == (102, 192, 200, 201)
    assert (a.target.p50, a.target.max) == (3, 5)
    assert a.counts[TRUNCATED] is None
    assert "Lengths in tokens" in render(report)


def test_examples_are_counted_as_truncated_exactly_where_training_truncates_them() -> None:
    draw = np.random.default_rng(0)
    lines = [
        (str(i), "ab"[i % 2], "甲" * int(draw.integers(1, 60)), "x" * int(draw.integers(1, 30))) for i in range(300)
    ]
    suite = Toy(content={"train": lines})
    report = validate(suite, "here", Characters(), 50)
    dataset = suite.read("here", "train")
    train = group(dataset, "train", ["a", "b"])
    limits = generation_limits(Characters(), train, ["a", "b"], None)
    encoder = Encoder(tokenizer=Characters(), style="plain", eos=0, max_length=50, limits=limits)
    for task in report.tasks:
        examples = train.of(task.task)
        short = [len(e.target) + 1 > len(r.target) for e, r in zip(examples, encoder.encode(examples), strict=True)]
        cut = [r.truncated for r in encoder.encode(examples)]
        expected = sum(c or s for c, s in zip(cut, short, strict=True))
        assert task.counts[TRUNCATED] == expected
        assert 0 < expected < task.n


def test_a_truncated_target_has_no_end_and_is_marked() -> None:
    encoder = Encoder(tokenizer=Characters(), style="plain", eos=0, max_length=12, limits={"a": 6})
    train = group(
        Toy(content={"train": [("1", "a", "甲", "xyz"), ("2", "a", "甲", "x" * 40)]}).read("", "train"), "train", ["a"]
    )
    short, long = encoder.encode(train.of("a"))
    assert short.target[-1] == 0
    assert not short.target_truncated
    assert len(long) == 12
    assert 0 not in long.target
    assert long.target_truncated


def test_tables_list_examples_by_split_and_only_the_tasks_with_flaws() -> None:
    report = validated(
        {"train": [("1", "a", "甲", "x"), ("2", "b", "乙", "?")], "test": [("3", "a", "丙", ""), ("4", "b", "丁", "")]}
    )
    lines = [line.split() for line in render(report).splitlines()]
    assert [line for line in lines if line[:1] in (["task"], ["a"], ["b"])] == [
        ["task", "train", "test"],
        ["a", "1", "1"],
        ["b", "1", "1"],
        ["task", "split", "unparsed"],
        ["b", "train", "1"],
    ]


def test_small_tasks_are_remarked_on_except_in_the_embedded_sample() -> None:
    class WithSample(Toy):
        @property
        def sample(self) -> Path:
            return Path("here")

    content = {"test": [("1", "a", "甲", "x"), ("2", "b", "乙", "x")]}
    assert validate(WithSample(content=content), "here").remarks == ()
    assert len(validate(WithSample(content=content), "there").remarks) == 1


def test_a_length_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--max-length is in tokens.*add --model"):
        validated({"train": []}, max_length=10)


def test_the_report_as_json_says_the_same() -> None:
    report = validated({"train": [("1", "a", "甲", "?")]}, tokenizer=Characters(), max_length=20)
    value = json.loads(to_json(report))
    assert value["totals"] == report.totals
    assert set(value["totals"]) == set(FLAWS)
    assert value["tasks"][0]["prompt"]["max"] == 2
    assert value["tasks"][1]["prompt"] is None
    assert value["findings"][0]["where"] == "here/train:1"


@pytest.mark.long
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
    assert peak(9000) - peak(3000) < 300 * 6000  # bytes; the texts of an example have 1400


def test_real_data_have_no_flaws(shared_data: Path, hf_cache: Path) -> None:
    from harness.registry import suite_class

    for name in ("firefly", "promptcblue"):
        report = validate(suite_class(name)(), str(shared_data / name))
        assert report.errors == {}
        totals = dict(report.totals)
        repeated = totals.pop(LEAKED_CONTENT)
        assert {kind: n for kind, n in totals.items() if n} == {}, render(report)
        assert repeated <= 2  # a rare template whose content has less than four characters
        assert sum(task.n for task in report.tasks) > 9000
