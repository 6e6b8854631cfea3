"""The PromptCBLUE suite reads the official files, and its errors name what is wrong with other files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_stub import Hub
from logged import messages

from harness.data.splits import Use, load_split
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


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines), encoding="utf-8")
    return path


def refused(source: Path, split: str = "test") -> str:
    with pytest.raises(DataError) as error:
        SUITE.read(str(source), split)
    return str(error.value)


def test_a_folder_is_read_in_its_order_with_choices_that_may_be_missing(tmp_path: Path, cache: Path) -> None:
    free = line(2, task_dataset="MedDG", target="多喝水。", answer_choices=None)
    write(tmp_path / "train.json", line(1), free, line(3, target="不相关"))
    data = SUITE.read(str(tmp_path), "train")
    assert data.column_names == ["id", "task", "prompt", "target", "group", "choices", "references"]
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


def test_the_new_name_of_a_task_means_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path / "test.json", line(1, task_dataset="CMeIE-V2", answer_choices=["病因"]))
    assert SUITE.read(str(path), "test")["task"][:] == ["CMeIE"]


def test_splits_and_files_are_those_that_exist(tmp_path: Path) -> None:
    train, dev = (write(tmp_path / name, line(1)) for name in ("train.json", "dev.jsonl"))
    write(tmp_path / "notes.json", line(1))
    assert SUITE.splits(str(tmp_path)) == ("train", "dev")
    assert SUITE.files(str(tmp_path)) == (train, dev)
    assert SUITE.splits(str(dev)) == ("dev",)
    assert SUITE.splits(str(tmp_path / "notes.json")) == ("test",)
    assert SUITE.files("someone/promptcblue") == ()


def test_the_error_for_a_missing_split_names_the_folder_its_files_and_the_needed_ones(tmp_path: Path) -> None:
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
        ({"input": " \n"}, ["'input' is blank"]),
        ({"input": 7}, ["'input' must be text"]),
        ({"input": ...}, ["no column 'input'"]),
        ({"target": ["相关"]}, ["'target' must be text", "['相关']"]),
        ({"answer_choices": "相关"}, ["'answer_choices' must be a list of texts or null", "'相关'"]),
        ({"answer_choices": ["相关", 1]}, ["'answer_choices' must be a list of texts or null"]),
        ({"answer_choices": None}, ["KUAKE-IR needs 'answer_choices'"]),
        ({"answer_choices": ...}, ["KUAKE-IR needs 'answer_choices'"]),
        ({"sample_id": "toy-1"}, ["'toy-1'", "already used in line 1"]),
    ],
)
def test_a_bad_line_is_named_with_its_value_and_a_remedy(
    tmp_path: Path, changes: dict[str, Any], parts: list[str]
) -> None:
    path = write(tmp_path / "test.json", line(1), line(2), line(3, **changes))
    message = refused(tmp_path)
    for part in (f"{path}, line 3", *parts):
        assert part in message


@pytest.mark.parametrize(
    ("split", "changes", "parts"),
    [
        ("train", {"target": ..., "output": "相关"}, ["no 'target'", "'output'", "rename that column to 'target'"]),
        ("train", {"target": ..., "my_reply": "相关"}, ["no 'target'", "'my_reply'"]),
        ("test", {"target": None, "Answer": "相关"}, ["a blank 'target'", "'Answer'"]),
        ("test", {"target": ..., "label": 0}, ["no 'target'", "'label'"]),
    ],
)
def test_answers_in_another_column_are_an_error_that_names_the_column(
    tmp_path: Path, split: str, changes: dict[str, Any], parts: list[str]
) -> None:
    path = write(tmp_path / f"{split}.json", line(1, **changes), line(2, **changes))
    message = refused(tmp_path, split)
    for part in (f"{path}, line 1", *parts):
        assert part in message


def test_other_columns_and_blank_ones_do_not_matter_where_an_answer_is_withheld(tmp_path: Path) -> None:
    write(tmp_path / "test.json", line(1, target=..., source="web"), line(2, target="", output=" ", label=None))
    write(tmp_path / "train.json", line(1, target=None, source="web"), line(2, target=...))
    for split in ("train", "test"):
        assert SUITE.read(str(tmp_path), split)["target"][:] == ["", ""]


@pytest.mark.parametrize("name", ["KUAKE-RI", "kuake-ir", "KUAKE-IR "])
def test_a_misspelt_task_is_an_error_with_line_and_nearest_name_unless_tasks_are_chosen(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / "test.json", line(1), line(2), line(3, task_dataset=name))
    with pytest.raises(DataError) as error:
        load_split(SUITE, str(path), "test", list(SUITE.tasks), use=Use(strict=True))
    for part in (f"{path}, line 3", repr(name), "Did you mean 'KUAKE-IR'", "--tasks"):
        assert part in str(error.value)
    with messages() as lines:
        assert load_split(SUITE, str(path), "test", ["KUAKE-IR"]).counts == {"KUAKE-IR": 2}
    assert lines == [f"test: 1 example of tasks that promptcblue does not have left out ({name} 1)"]


def test_the_two_further_tasks_of_the_files_with_eighteen_are_left_out_with_one_note(tmp_path: Path) -> None:
    further = [line(i, task_dataset=task, answer_choices=...) for i, task in enumerate(["Text2DT", "CMedCausal"] * 2)]
    path = write(tmp_path / "test.json", *further, line(9))
    with messages() as lines:
        found = load_split(SUITE, str(path), "test", list(SUITE.tasks), use=Use(strict=True))
    assert sum(found.counts.values()) == 1
    assert lines == ["test: 4 examples of tasks that promptcblue does not have left out (Text2DT 2, CMedCausal 2)"]


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "test.json")
    assert str(path) in refused(tmp_path)


def test_a_missing_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such folder or file" in refused(tmp_path / "nowhere" / "deep")

    def unreachable(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    message = refused(Path("someone/promptcblue"))
    assert "someone/promptcblue" in message
    assert "hub" in message


class Snapshots:
    """A fake download of a data set, in which each revision has a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, revision: str, *lines: dict[str, Any]) -> None:
        (self.folder / revision).mkdir(parents=True)
        write(self.folder / revision / "test.json", *lines)

    def download(self, repo_id: str, *, repo_type: str, revision: str, **_: Any) -> str:
        assert (repo_id, repo_type) == ("someone/promptcblue", "dataset")
        return str(self.folder / revision)


@pytest.fixture
def snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshots:
    found = Snapshots(tmp_path / "snapshots")
    monkeypatch.setattr("huggingface_hub.snapshot_download", found.download)
    return found


def test_hub_data_are_identified_and_read_at_the_revision_that_was_resolved(
    snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch)
    snapshots.add("1" * 40, line(1))
    snapshots.add("2" * 40, line(1), line(2))
    source = SUITE.pin("someone/promptcblue")
    assert source == f"someone/promptcblue@{'1' * 40}"
    assert SUITE.fingerprint(source) == {"revision": "1" * 40}
    hub.move()
    assert SUITE.pin(source) == source
    assert SUITE.fingerprint(source) == {"revision": "1" * 40}
    assert SUITE.read(source, "test")["id"][:] == ["toy-1"]
    assert SUITE.fingerprint("someone/promptcblue") == {"revision": "2" * 40}
    assert SUITE.read("someone/promptcblue", "test")["id"][:] == ["toy-1", "toy-2"]
    assert SUITE.pin("someone/promptcblue@v2") == f"someone/promptcblue@{'2' * 40}"
    assert hub.requests[-1] == ("someone/promptcblue", "v2")


def test_two_revisions_on_the_hub_are_two_runs(snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.config.request import Request
    from harness.config.spec import run_id
    from harness.pipeline.resolve import resolve

    hub = Hub(monkeypatch)
    snapshots.add("1" * 40, line(1))
    snapshots.add("2" * 40, line(1))
    asked = Request(options={"method": "majority", "suite": "promptcblue", "data": "someone/promptcblue"})
    one, again = resolve(asked), resolve(asked)
    hub.move()
    two = resolve(asked)
    assert run_id(one.spec) == run_id(again.spec) != run_id(two.spec)
    assert two.spec.data.fingerprints == {"revision": "2" * 40}
    pinned = resolve(Request(options={**asked.options, "data": one.source}))
    assert run_id(pinned.spec) == run_id(one.spec)


def test_every_run_of_a_sweep_reads_the_revision_that_the_first_one_found(
    snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from harness.sweep.jobs import Jobs
    from harness.sweep.spec import BoardSpec, RowSpec

    hub = Hub(monkeypatch)
    snapshots.add("1" * 40, line(1))
    lines = (RowSpec(method="majority"), RowSpec(method="nearest"))
    jobs = Jobs(BoardSpec(suite="promptcblue", data="someone/promptcblue", row=lines), tmp_path)
    jobs.resolved(jobs.example(jobs.entries[0]))
    hub.move()
    asked = {job.asked.options["data"] for job in jobs.all_jobs()}
    assert asked == {f"someone/promptcblue@{'1' * 40}"}
    assert len(hub.requests) == 1


def test_a_command_on_a_finished_run_reads_the_revision_of_the_run(
    snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch, harness: Any, tmp_path: Path
) -> None:
    hub = Hub(monkeypatch)
    snapshots.add("1" * 40, line(1))
    write(tmp_path / "snapshots" / ("1" * 40) / "train.json", line(2))
    run = ("run", "--method", "majority", "--suite", "promptcblue", "--data", "someone/promptcblue")
    done = harness(*run, "--out", tmp_path / "runs", "--json")
    assert done.status == 0, done.err
    hub.move()
    scored = harness("score", done.json["directory"])
    assert scored.status == 0, scored.err
    snapshots.add("2" * 40, line(3))
    other = harness("score", done.json["directory"], "--data", "someone/promptcblue")
    assert other.status == 1
    assert f"revision differ): give the right --data, for a data set of the hub ID@{'1' * 40}" in other.err


def test_without_the_hub_the_revision_is_that_of_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import scan_cache_dir

    hub = Hub(monkeypatch)
    hub.down = OSError("no network")
    repo = tmp_path / "hub" / "datasets--someone--promptcblue"
    monkeypatch.setattr("huggingface_hub.scan_cache_dir", lambda: scan_cache_dir(tmp_path / "hub"))
    with pytest.raises(DataError, match=r"no network.*does not have it.*--data someone/promptcblue@COMMIT"):
        SUITE.fingerprint("someone/promptcblue")
    for commit in ("1" * 40, "2" * 40):
        (repo / "snapshots" / commit).mkdir(parents=True)
        write(repo / "snapshots" / commit / "test.json", line(1))
        if commit.startswith("1"):
            assert SUITE.fingerprint("someone/promptcblue") == {"revision": commit}
    with pytest.raises(DataError, match=f"The local cache has {'1' * 40}, {'2' * 40}"):
        SUITE.fingerprint("someone/promptcblue")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("2" * 40)
    assert SUITE.fingerprint("someone/promptcblue") == {"revision": "2" * 40}
    assert SUITE.fingerprint(f"someone/promptcblue@{'3' * 40}") == {"revision": "3" * 40}


def test_local_files_are_identified_by_their_hashes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no test\.json or test\.jsonl"):
        SUITE.fingerprint(str(tmp_path))
    write(tmp_path / "test.json", line(1))
    write(tmp_path / "dev.json", line(1))
    one = SUITE.fingerprint(str(tmp_path))
    assert list(one) == ["dev.json", "test.json"]
    assert one["dev.json"] == one["test.json"]
    assert SUITE.same_data(one, one)
    assert not SUITE.same_data({}, one)
    assert SUITE.same_data({}, {"revision": "1" * 40}), "runs before revisions were recorded"


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
    lines = [{**line, "task_dataset": "CHIP-STS", "sample_id": f"t-{i}"} for i in range(3)]
    (tmp_path / "test.json").write_text("\n".join(json.dumps(r) for r in lines), encoding="utf-8")
    places = PromptCBLUE().locate(str(tmp_path), "test", ["t-2", "t-0", "gone"])
    assert places == {"t-0": f"{tmp_path / 'test.json'}:1", "t-2": f"{tmp_path / 'test.json'}:3"}


def test_an_example_whose_id_is_a_number_is_located_too(tmp_path: Path) -> None:
    write(tmp_path / "test.json", line(1, sample_id=17), line(2, sample_id=18))
    assert SUITE.read(str(tmp_path), "test")["id"][:] == ["17", "18"]
    assert SUITE.locate(str(tmp_path), "test", ["18"]) == {"18": f"{tmp_path / 'test.json'}:2"}
