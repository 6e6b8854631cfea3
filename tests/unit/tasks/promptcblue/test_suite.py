"""The PromptCBLUE suite reads the official files, and says what is wrong with others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.errors import DataError
from harness.task import to_example
from tasks.promptcblue.suite import PromptCBLUE

SUITE = PromptCBLUE()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def line(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "input": f"问{number}",
        "target": "相关",
        "answer_choices": ["相关", "不相关"],
        "task_type": "matching",
        "task_dataset": "KUAKE-IR",
        "sample_id": f"toy-{number}",
    }
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(source: Path, split: str = "test") -> str:
    with pytest.raises(DataError) as error:
        SUITE.read(str(source), split)
    return str(error.value)


def test_a_folder_is_read_in_its_order_with_choices_that_may_be_missing(tmp_path: Path, cache: Path) -> None:
    free = line(2, task_dataset="MedDG", target="多喝水。", answer_choices=None)
    write(tmp_path / "train.json", line(1), free, line(3, target="不相关"))
    data = SUITE.read(str(tmp_path), "train")
    assert data.column_names == ["id", "task", "prompt", "target", "choices"]
    assert data["id"][:] == ["toy-1", "toy-2", "toy-3"]
    assert [to_example(row).choices for row in data] == [("相关", "不相关"), None, ("相关", "不相关")]
    assert to_example(data[1]).target == "多喝水。"
    assert list(cache.rglob("*.arrow"))


def test_withheld_targets_are_empty_texts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "test.jsonl", line(1, target=""), line(2, target=" \n"), line(3, target=None), line(4, target=...)
    )
    assert SUITE.read(str(path), "test")["target"][:] == [""] * 4


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.json", line(1))
    assert len(SUITE.read(str(tmp_path), "dev")) == 1
    write(path, line(1), line(2))
    assert len(SUITE.read(str(tmp_path), "dev")) == 2


def test_the_newer_name_of_a_task_is_its_older_one(tmp_path: Path) -> None:
    path = write(tmp_path / "test.json", line(1, task_dataset="CMeIE-V2", answer_choices=["病因"]))
    assert SUITE.read(str(path), "test")["task"][:] == ["CMeIE"]


def test_splits_and_files_are_those_that_are_there(tmp_path: Path) -> None:
    train, dev = (write(tmp_path / name, line(1)) for name in ("train.json", "dev.jsonl"))
    write(tmp_path / "notes.json", line(1))
    assert SUITE.splits(str(tmp_path)) == ("train", "dev")
    assert SUITE.files(str(tmp_path)) == (train, dev)
    assert SUITE.splits(str(dev)) == ("dev",)
    assert SUITE.splits(str(tmp_path / "notes.json")) == ("test",)
    assert SUITE.files("someone/promptcblue") == ()


def test_a_missing_split_names_the_folder_what_is_there_and_what_is_needed(tmp_path: Path) -> None:
    write(tmp_path / "train.json", line(1))
    message = refused(tmp_path, "dev")
    for part in (str(tmp_path), "dev.json or dev.jsonl", "train.json"):
        assert part in message
    assert "is the train split" in refused(tmp_path / "train.json", "test")


def test_one_split_in_two_files_is_ambiguous(tmp_path: Path) -> None:
    write(tmp_path / "test.json", line(1))
    write(tmp_path / "test.jsonl", line(1))
    assert "both test.json and test.jsonl" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"task_dataset": "KUAKE-RI"}, ["'KUAKE-RI'", "Did you mean", "'KUAKE-IR'"]),
        ({"task_dataset": "Text2DT"}, ["'Text2DT'", "Known: CMeEE-V2, "]),
        ({"input": " \n"}, ["'input' is blank"]),
        ({"input": 7}, ["'input' must be text"]),
        ({"input": ...}, ["no column 'input'"]),
        ({"target": ["相关"]}, ["'target' must be text", "['相关']"]),
        ({"answer_choices": "相关"}, ["'answer_choices' must be a list of texts or null", "'相关'"]),
        ({"answer_choices": ["相关", 1]}, ["'answer_choices' must be a list of texts or null"]),
        ({"answer_choices": None}, ["KUAKE-IR needs 'answer_choices'"]),
        ({"answer_choices": ...}, ["KUAKE-IR needs 'answer_choices'"]),
        ({"sample_id": "toy-1"}, ["'toy-1'", "line 1 already"]),
    ],
)
def test_a_bad_line_is_named_with_its_value_and_a_remedy(
    tmp_path: Path, changes: dict[str, Any], parts: list[str]
) -> None:
    path = write(tmp_path / "test.json", line(1), line(2), line(3, **changes))
    message = refused(tmp_path)
    for part in (f"{path}, line 3", *parts):
        assert part in message


def test_an_empty_file_is_no_data(tmp_path: Path) -> None:
    path = write(tmp_path / "test.json")
    assert str(path) in refused(tmp_path)


def test_a_place_that_is_nowhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such folder or file" in refused(tmp_path / "nowhere" / "deep")

    def unreachable(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    message = refused(Path("someone/promptcblue"))
    assert "someone/promptcblue" in message
    assert "hub" in message


def test_a_data_set_on_the_hub_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "test.json", line(1))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    assert SUITE.read("someone/promptcblue", "test")["id"][:] == ["toy-1"]


def test_importing_the_suite_loads_no_heavy_package() -> None:
    code = (
        "import sys, tasks.promptcblue.suite; "
        "heavy = {'datasets', 'sklearn', 'jieba', 'rapidfuzz', 'rouge_chinese', 'seqeval', 'pandas', 'torch', "
        "'transformers', 'huggingface_hub'}; print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_real_files_are_read(shared_data: Path) -> None:
    folder = shared_data / "promptcblue"
    if not folder.is_dir():
        pytest.skip(f"no PromptCBLUE files at {folder}")
    assert SUITE.splits(str(folder)) == ("train", "dev", "test")
    data = SUITE.read(str(folder), "dev")
    assert len(data) == 1500
    assert set(data["task"][:]) == set(SUITE.tasks) - {"IMCS-V2-SR"}


def test_examples_are_located_by_file_and_line(tmp_path: Path) -> None:
    line = {"input": "x", "target": "是的", "answer_choices": ["是的", "不是"], "task_type": "cls"}
    rows = [{**line, "task_dataset": "CHIP-STS", "sample_id": f"t-{i}"} for i in range(3)]
    (tmp_path / "test.json").write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    found = PromptCBLUE().locate(str(tmp_path), "test", ["t-2", "t-0", "gone"])
    assert found == {"t-0": f"{tmp_path / 'test.json'}:1", "t-2": f"{tmp_path / 'test.json'}:3"}
