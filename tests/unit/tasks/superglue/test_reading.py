"""SuperGLUE read from the official files, from Parquet files and from the hub."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stub import Hub
from superglue_lines import LINES, PASSAGE, multirc, record, write, wsc

from harness.data.splits import Choice, load_split
from harness.errors import DataError, UsageError
from harness.task import Example, to_example
from tasks.superglue.suite import SuperGLUE

HUB = "someone/super-glue-toy"
SUITE = SuperGLUE(dev_percent=0)


@pytest.fixture(autouse=True)
def cache(hf_cache: Path) -> Path:
    return hf_cache


def read(source: Path | str, split: str = "test", suite: SuperGLUE = SUITE) -> list[Example]:
    return [to_example(row) for row in suite.read(str(source), split)]


def refused(source: Path | str, split: str = "test") -> str:
    with pytest.raises(DataError) as error:
        SUITE.read(str(source), split)
    return str(error.value)


def flat(task: str) -> list[dict[str, Any]]:
    """The same items as ``LINES`` as Parquet files and the hub have them."""
    if task == "multirc":
        return [
            {"paragraph": PASSAGE, "question": q["question"], "answer": a["text"], "label": a["label"],
             "idx": {"paragraph": 0, "question": q["idx"], "answer": a["idx"]}}
            for q in multirc()["passage"]["questions"] for a in q["answers"]
        ]  # fmt: skip
    if task == "record":
        line = record()
        names = {"entities": ["Ann Lee", "Bob", "Ann"], "answers": ["Ann Lee", "Ann"]}
        query = line["qas"][0]["query"]
        return [{"passage": line["passage"]["text"], "query": query, "idx": {"passage": 0, "query": 7}, **names}]
    if task == "wsc":
        line = dict(wsc())
        return [{**line, **line.pop("target"), "label": 1}]
    labels = {"False": 0, "entailment": 0, "not_entailment": 1, "0": 0}
    line = dict(LINES[task])
    return [{**line, "label": labels[str(line["label"])]}]


@pytest.fixture
def official(tmp_path: Path) -> Path:
    names = {"boolq": "BoolQ", "multirc": "MultiRC", "record": "ReCoRD", "wic": "WiC"}
    for task, line in LINES.items():
        for part in ("train", "val"):
            write(tmp_path / "zip" / names.get(task, task.upper()) / f"{part}.jsonl", [line])
    return tmp_path / "zip"


def test_the_validation_files_are_the_test_split_and_test_files_are_never_read(official: Path) -> None:
    write(official / "CB" / "test.jsonl", [{"premise": "Hidden.", "hypothesis": "Hidden", "idx": 0, "label": -1}])
    found = read(official)
    assert [e.id for e in found] == [
        "boolq-3", "cb-4", "copa-5", "multirc-0-0-0", "multirc-0-0-1", "multirc-0-0-2", "multirc-0-1-3",
        "record-0-7", "rte-6", "wic-7", "wsc-0",
    ]  # fmt: skip
    assert not any("Hidden" in e.prompt for e in found)
    assert SUITE.files(str(official)) == [
        official / folder / f"{part}.jsonl"
        for folder in ("BoolQ", "CB", "COPA", "MultiRC", "ReCoRD", "RTE", "WiC", "WSC")
        for part in ("train", "val")
    ]
    assert SUITE.locate(str(official), "test", ["multirc-0-1-3", "cb-4"]) == {
        "multirc-0-1-3": f"{official}/MultiRC/val.jsonl:1",
        "cb-4": f"{official}/CB/val.jsonl:1",
    }


def test_a_folder_with_hidden_labels_instead_of_the_validation_labels_is_an_error(tmp_path: Path) -> None:
    """Labels of -1 would index a list of answers from its end and give every example the same label."""
    write(tmp_path / "CB" / "val.jsonl", [{"premise": "A.", "hypothesis": "a", "idx": 0, "label": -1}])
    assert "CB/val.jsonl, line 1: the label is withheld (-1)" in refused(tmp_path)
    line = record()
    hidden = {**line, "qas": [{"query": "It is @placeholder.", "idx": 1, "answers": []}]}
    write(tmp_path / "ReCoRD" / "val.jsonl", [hidden])
    (tmp_path / "CB" / "val.jsonl").unlink()
    assert "query 0-1 has no answer among the passage's entities. Test files have none" in refused(tmp_path)


def test_parquet_files_have_the_same_examples_as_the_official_ones(official: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    for task in LINES:
        folder = "wsc.fixed" if task == "wsc" else task
        for name in ("train-00000-of-00001", "validation/0000", "test-00000-of-00001"):
            path = tmp_path / "parquet" / folder / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = flat(task)
            hidden = [{**line, "label": -1} for line in lines] if "test" in name and task != "record" else lines
            Dataset.from_list(hidden).to_parquet(str(path))
    for split in ("train", "test"):
        assert read(tmp_path / "parquet", split) == read(official, split)


def test_queries_with_several_entities_are_trained_on_each_and_tested_once(official: Path) -> None:
    train = [e for e in read(official, "train") if e.task == "record"]
    assert [(e.id, e.target) for e in train] == [("record-0-7-0", "A"), ("record-0-7-1", "C")]
    (test,) = [e for e in read(official) if e.task == "record"]
    assert (test.target, test.choices) == ("A | C", ("Ann Lee", "Bob", "Ann"))


def test_dev_is_a_part_of_train_in_which_all_questions_about_a_text_are_together(tmp_path: Path) -> None:
    passages = [multirc(i, f"Text number {i}.") for i in range(60)]
    write(tmp_path / "one" / "MultiRC" / "train.jsonl", passages)
    write(tmp_path / "two" / "MultiRC" / "train.jsonl", passages[::-1])
    parts = {}
    for name in ("one", "two"):
        train, dev = (read(tmp_path / name, split, SuperGLUE(dev_percent=30)) for split in ("train", "dev"))
        assert Counter(e.id for e in (*train, *dev)) == dict.fromkeys([e.id for e in (*train, *dev)], 1)
        assert len(train) + len(dev) == 240
        parts[name] = {e.prompt.partition("\n")[0] for e in dev}
        assert not parts[name] & {e.prompt.partition("\n")[0] for e in train}
    assert parts["one"] == parts["two"]
    assert 6 <= len(parts["one"]) <= 30
    source = str(tmp_path / "one")
    assert SuperGLUE().splits(source) == ("train", "dev")
    assert SUITE.splits(source) == ("train",)
    assert SUITE.fingerprint(source)["split"] != SuperGLUE().fingerprint(source)["split"]


def test_a_limit_keeps_all_answers_to_a_question(tmp_path: Path) -> None:
    write(tmp_path / "MultiRC" / "val.jsonl", [multirc(i, f"Text number {i}.") for i in range(30)])
    found = load_split(SUITE, str(tmp_path), "test", ["multirc"], Choice(per_task=20)).of("multirc")
    sizes = Counter(e.group for e in found)
    assert 17 <= len(found) <= 20
    assert all(n == (1 if str(question).endswith("-1") else 3) for question, n in sizes.items())


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("boolq", {"question": 5}, "'question' must be text that is not blank, not 5"),
        ("boolq", {"question": " "}, "must be text that is not blank"),
        ("cb", {"label": "maybe"}, "'label' must be entailment or contradiction or neutral, or its number from 0"),
        ("copa", {"question": "why"}, "'question' must be cause or effect, not 'why'"),
        ("rte", {"idx": "6"}, "'idx' must be a whole number, not '6'"),
        ("wsc", {"text": "Nothing is here."}, "the text does not contain span2_text 'she'"),
        ("wsc", {"target": [1]}, "'target' must be an object"),
        ("multirc", {"passage": {"text": "A.", "questions": "b"}}, "'questions' must be a list of objects"),
        ("multirc", {"passage": "A."}, "'idx' must have the numbers paragraph, question and answer"),
        ("record", {"qas": [{"query": "No gap.", "idx": 1, "answers": [{"text": "Bob"}]}]}, "has no @placeholder"),
    ],
)
def test_an_error_names_file_line_value_and_remedy(
    tmp_path: Path, task: str, changes: dict[str, Any], words: str
) -> None:
    write(tmp_path / task / "val.jsonl", [LINES[task], {**LINES[task], **changes}])
    message = refused(tmp_path)
    assert f"{tmp_path / task / 'val.jsonl'}, line 2" in message
    assert words in message


def test_the_file_of_another_task_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "rte" / "val.jsonl", [LINES["boolq"]])
    assert "no 'premise' (the line has 'idx', 'passage', 'question', 'label'). Is this the file of" in refused(tmp_path)


def test_a_source_without_tasks_says_what_is_needed(tmp_path: Path, official: Path) -> None:
    assert "no folder of a task (boolq, cb," in refused(tmp_path)
    assert "Pass the folder above it" in refused(official / "CB")
    assert "this is a file. SuperGLUE is read from a folder" in refused(official / "CB" / "val.jsonl")
    assert "no such folder" in refused(tmp_path / "zap")
    (tmp_path / "empty" / "CB").mkdir(parents=True)
    assert "no files in CB. Each needs train.jsonl and val.jsonl" in refused(tmp_path / "empty")
    with pytest.raises(DataError, match=r"no files in CB"):
        SUITE.fingerprint(str(tmp_path / "empty"))
    write(official / "CB" / "validation.jsonl", [LINES["cb"]])
    assert "several files of the same split exist (val.jsonl, validation.jsonl)" in refused(official)


def test_options_that_are_not_possible_are_errors() -> None:
    with pytest.raises(UsageError, match=r"unknown prompt format of superglue 'letter'.*letters"):
        SuperGLUE(format="letter")
    with pytest.raises(UsageError, match=r"suite.dev_percent = 60: must be from 0"):
        SuperGLUE(dev_percent=60)


class Stream:
    """``datasets.load_dataset`` for the toy data set, at the hub's present commit."""

    def __init__(self, hub: Hub) -> None:
        self.hub, self.configs = hub, list[str]()

    def __call__(
        self, path: str, config: str, *, revision: str, split: str, streaming: bool
    ) -> Iterator[dict[str, Any]]:
        assert (path, revision, streaming) == (HUB, self.hub.commit, True)
        assert split in ("train", "validation")
        self.configs.append(config)
        return iter(flat(config.removesuffix(".fixed")))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Stream:
    source = Stream(hub)
    monkeypatch.setattr("datasets.load_dataset", source)
    return source


def test_the_hub_has_the_same_examples_as_the_official_files(stream: Stream, official: Path) -> None:
    for split in ("train", "test"):
        assert read(HUB, split) == read(official, split)
    assert "wsc.fixed" in stream.configs
    assert "wsc" not in stream.configs
    assert SUITE.splits(HUB) == ("train", "test")
    assert SUITE.locate(HUB, "test", ["cb-4"]) == {}


def test_hub_data_are_read_at_the_commit_that_was_resolved(stream: Stream, hub: Hub) -> None:
    source = SUITE.pin(HUB)
    assert source == f"{HUB}@{hub.commit}"
    assert SUITE.fingerprint(source) == {"revision": hub.commit, "split": "content-hash-1(dev_percent=0)"}
    hub.move()
    assert SUITE.pin(HUB) != source


def test_an_unreachable_hub_is_a_data_error(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr("datasets.load_dataset", fails)
    assert "line 1 of 'boolq' of the data set on the hub cannot be read (OSError: no network)" in refused(HUB)


def test_the_real_files_are_read_and_every_target_is_a_perfect_prediction(shared_data: Path) -> None:
    from harness.scoring.judge import judge

    for form in ("letters", "t5", "lm-eval"):
        suite = SuperGLUE(format=form)
        found = read(shared_data / "superglue", "test", suite)
        counts = Counter(e.task for e in found)
        assert (counts["multirc"], counts["boolq"], counts["wsc"]) == (4848, 3270, 104)
        for name, task in suite.tasks.items():
            of_task = [e for e in found if e.task == name]
            judged = judge(task, "official", of_task, [e.target for e in of_task])
            values = judged.statistics.values(judged.statistics.per_unit.sum(0))
            assert (judged.n_unparsed, float(values[task.protocols["official"].headline])) == (0, 1.0)
    lines = (shared_data / "superglue" / "MultiRC" / "val.jsonl").read_text(encoding="utf-8").splitlines()
    assert len({json.loads(line)["idx"] for line in lines}) == 83
