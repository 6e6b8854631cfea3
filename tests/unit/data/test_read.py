"""What a suite's ``read`` returns is checked before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data.read import contents, read_split
from harness.data.splits import group, load_split, locate_data
from harness.errors import DataError, HarnessError
from harness.scoring.check_rules import check_rules
from harness.scoring.draws import examples_fingerprint
from harness.task import Example, Protocol, Statistics, Suite, Task, to_example

GOOD = {"id": "a", "task": "t", "prompt": "p", "target": "x"}


def statistics(golds: Any, answers: Any) -> Statistics:
    per_unit = np.array([[float(g == a)] for g, a in zip(golds, answers, strict=True)]).reshape(-1, 1)
    return Statistics(per_unit=per_unit, values=lambda sums: {"accuracy": sums[..., 0]})


RULE = Protocol(parse=lambda text, example: text, statistics=statistics, headline="accuracy")


@dataclass(frozen=True, kw_only=True)
class Shop(Suite):
    name = "shop"
    version = 1
    given: Any = None
    rule: Protocol = field(default=RULE)

    @property
    def tasks(self) -> dict[str, Task]:
        return {"t": Task(name="t", version=1, kind="label", protocols={"official": self.rule})}

    def read(self, source: str, split: str) -> Any:
        from datasets import Dataset

        return self.given if not isinstance(self.given, list) else Dataset.from_list(self.given)

    def fingerprint(self, source: str) -> dict[str, str]:
        return {"x": "1"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([GOOD, {**GOOD, "prompt": "q"}], ["'a'", "twice", "example 1 and example 2"]),
        ([GOOD, {**GOOD, "id": "b", "target": None}], ["example 2", "'b'", "target", '""']),
        ([{**GOOD, "prompt": None}], ["example 1", "prompt"]),
        ([{**GOOD, "id": 1}], ["'id'", "texts", "int64"]),
        ([{**GOOD, "references": ["y", "z"]}], ["'a'", "'x'", "is not among its references", "the target included"]),
        ([{**GOOD, "references": [1, 2]}], ["'a'", "[1, 2]", "a list of texts"]),
        ([{**GOOD, "references": "x"}], ["'a'", "a list of texts"]),
        ([{"id": "a"}], ["no column task, prompt, target"]),
        (({"id": "a"},), ["datasets.Dataset", "tuple", "from_list"]),
        (None, ["datasets.Dataset", "NoneType"]),
    ],
)
def test_what_the_contract_forbids_is_named(given: Any, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read_split(Shop(given=given), "source", "train")
    for word in words:
        assert word in str(caught.value), str(caught.value)


@dataclass(frozen=True, kw_only=True)
class PlacedShop(Shop):
    """It knows one place for each id, as a suite whose file has an id twice does."""

    name = "placed-shop"

    def locate(self, source: str, split: str, ids: Iterable[str]) -> dict[str, str]:
        return dict.fromkeys(ids, f"{split}.jsonl:7")


def test_the_place_of_an_id_that_occurs_twice_is_that_of_either_example() -> None:
    with pytest.raises(DataError, match=r"example 1 and example 2 \(one is at train\.jsonl:7\)\. Ids must"):
        read_split(PlacedShop(given=[GOOD, GOOD]), "source", "train")


def test_a_split_without_flaws_is_returned() -> None:
    assert len(read_split(Shop(given=[GOOD]), "source", "train")) == 1


def test_references_are_kept_where_an_example_has_several() -> None:
    several = {**GOOD, "id": "b", "references": ["x ", "y"]}
    dataset = read_split(Shop(given=[{**GOOD, "references": None}, several]), "source", "train")
    assert [to_example(row).references for row in dataset] == [None, ("x ", "y")]


def test_other_references_are_other_test_examples() -> None:
    one = Example(id="a", task="t", prompt="p", target="x")
    hashes = {examples_fingerprint([replace(one, references=given)]) for given in (None, ("x", "y"), ("x", "z"))}
    assert len(hashes) == 3


def test_a_suite_is_asked_for_the_tasks_of_its_data_before_their_fingerprint() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Found(Shop):
        def at(self, source: str) -> Found:
            return replace(self, given=source)

        def fingerprint(self, source: str) -> dict[str, str]:
            return {"given": self.given}

    located = locate_data(Found(), "somewhere/data")
    assert (located.suite.given, located.spec.fingerprints) == ("somewhere/data", {"given": "somewhere/data"})  # type: ignore[attr-defined]


def test_a_headline_that_the_statistics_lack_is_an_error_before_training() -> None:
    suite = Shop(given=[GOOD], rule=replace(RULE, headline="f1"))
    examples = group(suite.read("", "test"), "test", ["t"])
    with pytest.raises(HarnessError, match=r"task 't', protocol 'official': the headline 'f1'.*accuracy"):
        check_rules(suite, examples)
    check_rules(Shop(given=[GOOD]), examples)


def test_a_missing_split_lists_what_the_folder_has(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class TestOnly(Shop):
        def splits(self, source: str) -> tuple[str, ...]:
            return ("test",)

    (tmp_path / "Train.JSON").write_text("")
    (tmp_path / "train.json").mkdir()
    with pytest.raises(DataError, match=r"no train split.*The folder contains Train.JSON, train.json/"):
        load_split(TestOnly(given=[GOOD]), str(tmp_path), "train", ["t"])
    assert contents(str(tmp_path / "gone")) == f" There is no folder {tmp_path / 'gone'}."


def test_the_current_folder_is_labelled_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_data").mkdir()
    monkeypatch.chdir(tmp_path / "shop_data")
    assert locate_data(Shop(), ".").spec.label == "shop_data"
