"""Firefly read from a folder, a file and the hub."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stub import Hub

from harness.data.splits import Use, load_split
from harness.errors import DataError, UsageError
from harness.task import Example, to_example
from tasks.firefly.suite import Firefly
from tasks.firefly.tasks import CHECKABLE, TASKS, chosen

HUB = "someone/firefly-toy"


def line(kind: str, prompt: str, target: str = "是的") -> dict[str, str]:
    return {"kind": kind, "input": prompt, "target": target}


def write(path: Path, lines: list[dict[str, str]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), encoding="utf-8")
    return str(path)


def toys(n: int = 300) -> list[dict[str, str]]:
    return [line(kind, f"{kind} 第{i}题") for i in range(n) for kind in ("MRC", "Couplet", "Cot")]


def read(suite: Firefly, source: str, split: str) -> list[Example]:
    return [to_example(row) for row in suite.read(source, split)]


def test_the_files_of_a_folder_are_the_splits(tmp_path: Path, hf_cache: Path) -> None:
    lines = [line("MRC", "甲"), line("Cot", "乙"), line("NLI", "蕴含、中立还是矛盾？", "中立"), line("MRC", "甲")]
    write(tmp_path / "test.json", lines)
    suite = Firefly()
    assert suite.splits(str(tmp_path)) == ("test",)
    assert suite.files(str(tmp_path)) == [tmp_path / "test.json"]
    found = read(suite, str(tmp_path), "test")
    assert [(e.id, e.task, e.prompt) for e in found] == [
        ("test-1", "MRC", "甲"),
        ("test-3", "NLI", "蕴含、中立还是矛盾？"),
        ("test-4", "MRC", "甲"),
    ]
    assert found[1].choices == ("蕴含", "中立", "矛盾")
    assert found[0].choices is None
    assert suite.locate(str(tmp_path), "test", ["test-3"]) == {"test-3": f"{tmp_path / 'test.json'}:3"}
    with pytest.raises(DataError, match=r"train.jsonl: no such file.*test.json"):
        suite.read(str(tmp_path), "train")


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("test.json", "test.jsonl"):
        write(tmp_path / name, toys(1))
    with pytest.raises(DataError, match=r"both test.jsonl and test.json exist. Keep one"):
        Firefly().read(str(tmp_path), "test")


def test_a_folder_without_split_files_has_no_splits(tmp_path: Path) -> None:
    for name in ("part-1.jsonl", "part-2.jsonl"):
        write(tmp_path / name, toys(1))
    assert Firefly().splits(str(tmp_path)) == ()
    with pytest.raises(DataError, match=r"The folder contains part-1.jsonl, part-2.jsonl"):
        Firefly().read(str(tmp_path), "train")


def test_a_copy_of_the_data_set_from_the_hub_is_divided_by_content(tmp_path: Path, hf_cache: Path) -> None:
    file = write(tmp_path / "copy" / "firefly-train-1.1M.jsonl", toys())
    (tmp_path / "copy" / "README.md").write_text("a data set", encoding="utf-8")
    (tmp_path / "copy" / "dataset_infos.json").write_text("{}", encoding="utf-8")
    suite = Firefly(kinds=("all",))
    folder = str(tmp_path / "copy")
    assert suite.fingerprint(folder) == suite.fingerprint(file)
    for split in ("train", "dev", "test"):
        assert read(suite, folder, split) == read(suite, file, split) != []


def test_a_file_is_split_by_content_in_any_order_of_its_lines(tmp_path: Path, hf_cache: Path) -> None:
    lines = toys()
    one = write(tmp_path / "one.jsonl", lines)
    other = write(tmp_path / "other.jsonl", lines[::-1])
    suite = Firefly(kinds=("MRC", "Couplet"), per_kind=None, dev_share=0.1, test_share=0.2)
    prompts = {}
    for split in suite.splits(one):
        found = read(suite, one, split)
        assert {(e.id, e.prompt) for e in found} == {(e.id, e.prompt) for e in read(suite, other, split)}
        assert len({e.id for e in found}) == len(found)
        prompts[split] = [e.prompt for e in found]
    assert sorted(p for found in prompts.values() for p in found) == sorted(
        x["input"] for x in lines if x["kind"] != "Cot"
    )
    assert 0.14 < len(prompts["test"]) / 600 < 0.26
    assert 0.06 < len(prompts["dev"]) / 600 < 0.14


def test_a_file_without_splits_is_identified_by_its_hash_and_the_rule_that_splits_it(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", toys(5))
    known = Firefly().fingerprint(source)
    assert list(known) == ["a.jsonl", "split"]
    assert known["split"] == "content-hash-1(dev=0.05,test=0.1,per_kind=2000)"
    assert Firefly(test_share=0.2).fingerprint(source)["split"] != known["split"]
    write(tmp_path / "a.jsonl", toys(6))
    assert Firefly().fingerprint(source)["a.jsonl"] != known["a.jsonl"]


def test_a_folder_of_split_files_is_identified_by_their_hashes_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test\.jsonl: no such file"):
        Firefly().fingerprint(str(tmp_path))
    write(tmp_path / "test.jsonl", toys(5))
    assert list(Firefly().fingerprint(str(tmp_path))) == ["test.jsonl"]


def test_a_fingerprint_of_the_earlier_form_identifies_the_same_data(tmp_path: Path) -> None:
    folder = str(Path(write(tmp_path / "data" / "test.jsonl", toys(5))).parent)
    file = write(tmp_path / "a.jsonl", toys(5))
    sentence = "by sha256 of kind and input: equal inputs share a split, equal contents in two templates may not"
    for source, former in ((folder, "by the source's files"), (file, sentence)):
        now = Firefly().fingerprint(source)
        assert Firefly().same_data({**now, "split": former}, now)
        assert not Firefly().same_data({**dict.fromkeys(now, "0" * 64), "split": former}, now)
        assert not Firefly().same_data({**now, "split": "another rule"}, now)
    on_the_hub = {"revision": "a" * 40, "split": "content-hash-1(dev=0.05,test=0.1,per_kind=2000)"}
    assert Firefly().same_data({"split": sentence}, on_the_hub)
    assert not Firefly().same_data({**on_the_hub, "revision": "b" * 40}, on_the_hub)


def test_duplicates_are_read_once_and_counted(tmp_path: Path, hf_cache: Path) -> None:
    lines = toys(40)
    source = write(tmp_path / "a.jsonl", [*lines, *(line(x["kind"], x["input"], "另答") for x in lines)])
    suite = Firefly(kinds=("MRC",))
    kept = [e for split in suite.splits(source) for e in read(suite, source, split)]
    assert len(kept) == 40
    assert {e.target for e in kept} == {"是的"}
    how = suite.describe(source)
    assert sum(how["duplicates_left_out"].values()) == 40
    assert json.loads(json.dumps(how))["kinds"] == ["MRC"]


def test_the_same_input_under_two_kinds_is_two_examples(tmp_path: Path, hf_cache: Path) -> None:
    source = write(tmp_path / "a.jsonl", [line("MRC", "甲"), line("Cot", "甲")])
    suite = Firefly(kinds=("MRC", "Cot"), dev_share=0, test_share=0)
    assert suite.splits(source) == ("train",)
    assert len({e.id for e in read(suite, source, "train")}) == 2


def test_an_example_is_located_by_its_content(tmp_path: Path, hf_cache: Path) -> None:
    source = write(tmp_path / "a.jsonl", toys(20))
    suite = Firefly(kinds=("MRC", "Couplet"))
    for e in read(suite, source, "train")[:3]:
        place = suite.locate(source, "train", [e.id])[e.id]
        number = int(place.removeprefix(source + ":"))
        assert toys(20)[number - 1]["input"] == e.prompt


def test_other_options_do_not_read_a_stale_cache(tmp_path: Path, hf_cache: Path) -> None:
    source = write(tmp_path / "a.jsonl", toys(50))
    assert Counter(e.task for e in read(Firefly(kinds=("MRC",), per_kind=5), source, "train")) == {"MRC": 5}
    assert Counter(e.task for e in read(Firefly(kinds=("Cot",), per_kind=7), source, "train")) == {"Cot": 7}
    more = [*toys(50), line("MRC", "全新")]
    write(tmp_path / "a.jsonl", more)
    whole = Firefly(kinds=("MRC",), per_kind=None, dev_share=0, test_share=0)
    assert len(read(whole, source, "train")) == 51


class Stream:
    """A fake streamed data set that counts the examples that were requested."""

    def __init__(self, rows: list[dict[str, Any]], hub: Hub) -> None:
        self.rows, self.asked, self.hub = rows, 0, hub

    def load(self, path: str, *, revision: str, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
        assert (path, revision, split, streaming) == (HUB, self.hub.commit, "train", True)
        for row in self.rows:
            self.asked += 1
            yield row


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch, hf_cache: Path, hub: Hub) -> Stream:
    import datasets

    source = Stream(toys(500), hub)
    monkeypatch.setattr(datasets, "load_dataset", source.load)
    return source


def test_the_hub_is_streamed_no_further_than_needed(stream: Stream) -> None:
    suite = Firefly(kinds=("MRC", "Couplet"), per_kind=20)
    found = read(suite, HUB, "train")
    assert Counter(e.task for e in found) == {"MRC": 20, "Couplet": 20}
    asked = stream.asked
    assert 60 <= asked < 150
    assert read(suite, HUB, "train") == found
    assert stream.asked == asked
    assert suite.files(HUB) == []
    assert suite.locate(HUB, "train", [found[0].id]) == {}
    assert "duplicates_left_out" not in suite.describe(HUB)


def test_hub_data_are_identified_and_read_at_the_revision_that_was_resolved(stream: Stream, hub: Hub) -> None:
    suite = Firefly(kinds=("MRC",), per_kind=20)
    source = suite.pin(HUB)
    assert source == f"{HUB}@{hub.commit}"
    rule = "content-hash-1(dev=0.05,test=0.1,per_kind=20)"
    assert suite.fingerprint(source) == suite.fingerprint(HUB) == {"revision": hub.commit, "split": rule}
    first = read(suite, source, "train")
    hub.move()
    stream.rows = stream.rows[::-1]
    assert suite.pin(source) == source
    assert read(suite, source, "train") == first
    assert suite.pin(HUB) == f"{HUB}@{hub.commit}" != source
    assert read(suite, HUB, "train") != first


def test_the_hub_and_a_file_with_the_same_lines_have_the_same_examples(tmp_path: Path, stream: Stream) -> None:
    suite = Firefly(kinds=("MRC",), per_kind=30)
    source = write(tmp_path / "a.jsonl", stream.rows)
    for split in ("train", "dev", "test"):
        assert read(suite, HUB, split) == read(suite, source, split)


def test_an_example_of_another_data_set_is_named(stream: Stream) -> None:
    stream.rows[2] = {"instruction": "甲", "input": "", "output": ""}
    with pytest.raises(
        DataError, match=f"{HUB}, example 3: no text in column 'kind'. The columns are input, instruction, output"
    ):
        Firefly().read(HUB, "train")


def test_an_unreachable_hub_is_a_data_error(monkeypatch: pytest.MonkeyPatch, hf_cache: Path, hub: Hub) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> Iterator[Any]:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"someone/firefly-toy.*example 1 .* \(ConnectionError: no route\)"):
        Firefly().read(HUB, "train")


def test_a_misspelt_path_is_not_requested_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "firefly.json", toys(1))
    monkeypatch.chdir(tmp_path)
    for source in ("data/firefy", "data/firefly.jsonl"):
        with pytest.raises(DataError, match=r"Did you mean 'firefly.json'"):
            Firefly().read(source, "train")


def test_an_unknown_kind_is_named_with_its_file_and_line(tmp_path: Path, hf_cache: Path) -> None:
    lines = [line("MRC", "甲"), line("Coupler", "乙")]
    for source in (write(tmp_path / "a.jsonl", lines), str(Path(write(tmp_path / "b" / "train.jsonl", lines)).parent)):
        suite = Firefly(dev_share=0, test_share=0)
        with pytest.raises(DataError, match=r"jsonl, line 2: .* no task 'Coupler'. Did you mean 'Couplet'"):
            load_split(suite, source, "train", list(suite.tasks), use=Use(strict=True))
        assert load_split(suite, source, "train", ["MRC"]).counts == {"MRC": 1}


def test_answers_in_another_column_are_named_and_a_missing_one_is_blank(tmp_path: Path, hf_cache: Path) -> None:
    moved = [{"kind": "MRC", "input": "甲", "output": "乙"}]
    for source in (write(tmp_path / "a.jsonl", moved), str(Path(write(tmp_path / "b" / "train.jsonl", moved)).parent)):
        with pytest.raises(DataError, match=r"jsonl, line 1: no 'target' \(the line has 'output'\)"):
            Firefly(dev_share=0, test_share=0).read(source, "train")
    lines = [line("MRC", "甲"), {"kind": "MRC", "input": "丙", "target": None}, {"kind": "MRC", "input": "丁"}]
    suite = Firefly(dev_share=0, test_share=0)
    found = load_split(suite, write(tmp_path / "c.jsonl", lines), "train", ["MRC"])
    assert (found.counts, len(found.blank["MRC"])) == ({"MRC": 1}, 2)


def test_a_split_without_examples_of_the_chosen_kinds_is_an_error(tmp_path: Path, hf_cache: Path) -> None:
    source = write(tmp_path / "a.jsonl", [line("Cot", "甲")])
    with pytest.raises(DataError, match=r"no example of the chosen kinds in split 'train'.*suite.kinds"):
        Firefly(dev_share=0, test_share=0).read(source, "train")


def test_the_kinds_are_those_of_firefly() -> None:
    assert list(Firefly().tasks) == list(chosen(CHECKABLE)) == [k for k in TASKS if k in CHECKABLE]
    assert len(Firefly(kinds=("all",)).tasks) == 23
    assert set(Firefly(kinds=("all", "BELLE")).tasks) == set(TASKS)
    assert list(Firefly(kinds=("MRC", "NLI", "MRC")).tasks) == ["NLI", "MRC"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kinds": ("Coplet",)}, "unknown Firefly kind 'Coplet'. Did you mean 'Couplet'"),
        ({"kinds": ()}, "suite.kinds is empty"),
        ({"per_kind": 0}, "suite.per_kind = 0"),
        ({"dev_share": 0.5, "test_share": 0.5}, "examples are left for training"),
        ({"dev_share": -0.1}, "between 0 and 1"),
    ],
)
def test_an_impossible_option_is_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Firefly(**options)


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown split 'tset'. Did you mean 'test'"):
        Firefly().read(str(tmp_path), "tset")
