"""The tasks are found in the data, and each instance belongs to one split."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from toy_instructions import task_content, write_tasks

from harness.data.read import read_split
from harness.errors import DataError, HarnessError, UsageError
from harness.task import Example, to_example
from tasks.superni.source import draw_key, drawn
from tasks.superni.suite import SuperNI

NAMES = [f"task{n}_toy" for n in (3, 12, 101, 20)]


@pytest.fixture
def data(tmp_path: Path, hf_cache: Path) -> str:
    """Three tasks to train on and a held-out one of another category."""
    tasks = {name: task_content(int(name[4:-4])) for name in NAMES}
    tasks["task20_toy"] = task_content(20, n=40, Categories=["Word Analogy"])
    return str(write_tasks(tmp_path / "ni", tasks, train=NAMES[:3], test=NAMES[3:]))


def examples(suite: SuperNI, data: str, split: str) -> list[Example]:
    return [to_example(row) for row in read_split(suite, data, split)]


def ids(suite: SuperNI, data: str, split: str, task: str) -> list[str]:
    return [e.id for e in examples(suite, data, split) if e.task == task]


def test_the_tasks_are_those_of_the_lists_by_number_with_held_out_ones_last(data: str) -> None:
    suite = SuperNI().at(data)
    assert list(suite.tasks) == ["task3_toy", "task12_toy", "task101_toy", "task20_toy"]
    assert suite.held_out == ("task20_toy",)
    assert suite.tasks["task20_toy"].kind == "Word Analogy"
    assert suite.at("elsewhere") is suite


def test_a_suite_is_built_again_from_its_fields_without_the_data(data: str) -> None:
    suite = SuperNI().at(data)
    again = SuperNI(**dataclasses.asdict(suite))
    assert {name: task.kind for name, task in again.tasks.items()} == dict(suite.categories)


def test_a_task_has_a_fifth_of_its_instances_for_test_a_tenth_for_dev_and_no_instance_twice(data: str) -> None:
    suite = SuperNI(n_train=None).at(data)
    parts = {split: ids(suite, data, split, "task3_toy") for split in ("train", "dev", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 23, "dev": 2, "test": 5}
    assert len({i for part in parts.values() for i in part}) == 30
    small = SuperNI(n_train=7, n_dev=1).at(data)
    few = {split: ids(small, data, split, "task3_toy") for split in ("train", "dev", "test")}
    assert {split: len(part) for split, part in few.items()} == {"train": 7, "dev": 1, "test": 5}
    assert few["test"] == parts["test"]
    assert set(few["dev"]) < set(parts["dev"])


def test_splits_do_not_depend_on_the_order_of_the_instances(data: str, tmp_path: Path) -> None:
    content = task_content(3)
    random.Random(1).shuffle(content["Instances"])
    other = str(write_tasks(tmp_path / "other", {"task3_toy": content}))
    for split in ("train", "dev", "test"):
        suite = SuperNI(n_train=10)
        assert set(ids(suite.at(other), other, split, "task3_toy")) == set(
            ids(suite.at(data), data, split, "task3_toy")
        )


def test_an_instance_that_prompts_print_as_an_example_is_in_training_only(data: str) -> None:
    suite = SuperNI(n_train=None).at(data)
    for split, expected in (("train", True), ("dev", False), ("test", False)):
        assert any(e.id == "task3-1" for e in examples(suite, data, split)) == expected


def test_equal_inputs_are_read_once(tmp_path: Path, hf_cache: Path) -> None:
    lines = [{"id": f"task5-{i}", "input": f"{i % 10} \n", "output": ["x"]} for i in range(40)]
    source = str(write_tasks(tmp_path, {"task5_toy": task_content(5, Instances=lines)}))
    suite = SuperNI().at(source)
    prompts = [e.prompt for split in ("train", "dev", "test") for e in examples(suite, source, split)]
    assert len(prompts) == len(set(prompts)) == 10


def test_a_held_out_task_has_its_first_instances_for_test_and_nothing_else(data: str) -> None:
    suite = SuperNI(n_test=6).at(data)
    assert ids(suite, data, "test", "task20_toy") == [f"task20-{i}" for i in range(6)]
    for split in ("train", "dev"):
        assert ids(suite, data, split, "task20_toy") == []
    alone = SuperNI(n_train_tasks=0).at(data)
    assert alone.splits(data) == ("test",)


def test_all_references_are_kept_and_one_of_them_is_the_target_of_training(data: str) -> None:
    suite = SuperNI(n_train=None).at(data)
    trained = examples(suite, data, "train")
    assert all(e.references is not None and e.target in e.references for e in trained)
    assert {e.references.index(e.target) for e in trained if e.references} == {0, 1}
    assert all(e.references and e.target == e.references[0] for e in examples(suite, data, "test"))
    other = examples(SuperNI(n_train=None, reference_seed=1).at(data), data, "train")
    assert [e.target for e in other] != [e.target for e in trained]


def test_options_decide_on_prompts(data: str) -> None:
    bare = SuperNI(definition=False, positive=0).at(data)
    assert examples(bare, data, "test")[0].prompt.startswith("Now complete the following example -\nInput: thing")
    full = SuperNI(explanation=True).at(data)
    assert " Explanation: It is." in examples(full, data, "test")[0].prompt


def test_named_tasks_are_used_whatever_the_lists_say(data: str) -> None:
    suite = SuperNI(only=("task20_toy", "task12_toy")).at(data)
    assert list(suite.tasks) == ["task12_toy", "task20_toy"]
    assert suite.held_out == ("task20_toy",)
    assert [path.name for path in suite.files(data)] == ["task12_toy.json", "task20_toy.json"]


def test_the_fingerprint_is_of_the_files_that_are_used(data: str) -> None:
    suite = SuperNI(only=("task12_toy",)).at(data)
    before = suite.fingerprint(data)
    write_tasks(Path(data), {"task3_toy": task_content(3, n=3)})
    assert suite.fingerprint(data) == before
    write_tasks(Path(data), {"task12_toy": task_content(12, n=3)})
    assert suite.fingerprint(data) != before


def test_a_folder_of_files_and_one_file_have_no_held_out_tasks(data: str) -> None:
    for source, n in ((f"{data}/tasks", 4), (f"{data}/tasks/task3_toy.json", 1)):
        suite = SuperNI().at(source)
        assert (len(suite.tasks), suite.held_out) == (n, ())


def test_a_draw_is_the_same_in_any_order_and_part_of_a_larger_one(data: str) -> None:
    names = [f"task{n}_x" for n in range(50)]
    few = drawn(names, 5, 0, "n")
    assert drawn(names[::-1], 5, 0, "n") == few == drawn(names, 12, 0, "n")[:5]
    assert set(few) != set(drawn(names, 5, 1, "n"))
    assert draw_key(few[0], 0) == min(draw_key(name, 0) for name in names)
    assert len(SuperNI(n_train_tasks=2, n_test_tasks=0).at(data).tasks) == 2


def test_tasks_with_other_languages_are_left_out_with_a_warning(
    data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tasks(Path(data), {"task12_toy": task_content(12, Output_language=["Hindi"])})
    assert "task12_toy" not in SuperNI().at(data).tasks
    assert "task12_toy" in caplog.text
    with pytest.raises(UsageError, match="task12_toy cannot be scored"):
        SuperNI(only=("task12_toy",)).at(data)


def test_ids_of_another_task_are_completed(tmp_path: Path, hf_cache: Path) -> None:
    source = str(write_tasks(tmp_path, {"task9_toy": task_content(9, Instances=task_content(4)["Instances"])}))
    assert all(e.id.startswith("task9-task4-") for e in examples(SuperNI().at(source), source, "test"))


def test_an_example_is_located_by_file_and_line(data: str) -> None:
    suite = SuperNI().at(data)
    place = suite.locate(data, "test", ["task20-3"])["task20-3"]
    path, _, line = place.rpartition(":")
    assert '"task20-3"' in Path(path).read_text(encoding="utf-8").splitlines()[int(line) - 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only": ("task3_toi",)}, ["suite.only", "'task3_toi'", "'task3_toy'"]),
        ({"split": "xlingual"}, ["suite.split", "'xlingual'", "default"]),
        ({"n_train_tasks": 9}, ["suite.n_train_tasks = 9", "the list has 3"]),
        ({"n_train": 0}, ["suite.n_train = 0", "at least 1"]),
        ({"positive": -1}, ["suite.positive = -1", "at least 0"]),
        ({"n_train_tasks": 0, "n_test_tasks": 0}, ["no task is left"]),
        ({"only": ("task3_toy",), "n_train_tasks": 1}, ["suite.only", "leave out"]),
    ],
)
def test_an_option_that_does_not_fit_is_named(data: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        SuperNI(**options).at(data)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_missing_data_are_named_with_the_remedy(data: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, words in (("nowhere", "git clone"), (str(tmp_path / "empty"), "no files taskNUMBER_NAME.json")):
        with pytest.raises(DataError, match=words):
            SuperNI().at(source)
    suite = SuperNI(n_train_tasks=3).at(data)
    (Path(data) / "tasks" / "task3_toy.json").unlink()
    with pytest.raises(DataError, match=r"the file task3_toy\.json"):
        SuperNI(n_train_tasks=3).at(data)
    with pytest.raises(HarnessError, match="task3_toy"):
        suite.files(data)
    assert "task3_toy" not in SuperNI().at(data).tasks


def test_a_task_in_both_lists_is_an_error(data: str) -> None:
    (Path(data) / "splits" / "default" / "test_tasks.txt").write_text("task3_toy\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"task3_toy is in train_tasks\.txt and in test_tasks\.txt"):
        SuperNI().at(data)


def test_the_real_task_files_give_parsed_targets(shared_data: Path, hf_cache: Path) -> None:
    source = str(shared_data / "superni")
    suite = SuperNI(only=("task002_quoref_answer_generation", "task363_sst2_polarity_classification")).at(source)
    kinds = {name: task.kind for name, task in suite.tasks.items()}
    assert list(kinds.values()) == ["Question Answering", "Basic Sentiment Analysis"]
    test = examples(suite, source, "test")
    assert len(test) == 180
    assert all(e.prompt.startswith("Definition: ") and e.prompt.endswith("\nOutput: ") for e in test)
    assert any(e.references for e in test)
