"""Which tasks of a group can be trained on, how they are split, and why others are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval_folder import COLOURS, MEAN, TaskFolder, colour_folder, colour_lines

from harness.errors import DataError, UsageError
from harness.task import FoundSuite
from tasks.lm_eval_groups.suite import GroupOptions, LmEvalGroups


@pytest.fixture
def folder(tmp_path: Path, hf_cache: Path) -> TaskFolder:
    return colour_folder(tmp_path / "tasks")


@pytest.fixture
def found(folder: TaskFolder) -> Callable[..., FoundSuite]:
    def call(names: str, **options: Any) -> FoundSuite:
        return LmEvalGroups.from_argument(names, GroupOptions(include_path=str(folder.path), **options))

    return call


Find = Callable[..., FoundSuite]


@pytest.mark.long
@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"training_split": None}, "it has no training split"),
        ({"test_split": None}, "neither a test nor a validation split"),
        ({"test_split": "train"}, "its training split 'train' is also the split that is scored"),
        ({"output_type": "loglikelihood", "doc_to_choice": None}, "its output type is loglikelihood"),
        ({"doc_to_text": "{{gold}}"}, "its choices are contexts"),
        ({"doc_to_choice": "{{[idx.a, idx.b]}}"}, "its targets carry ids for scoring"),
        ({"doc_to_image": "text"}, "its prompts have pictures"),
        ({"unsafe_code": True}, "it executes generated code"),
        ({"repeats": 3}, "it asks 3 times"),
        ({"doc_to_text": "{{ missing.key }}"}, "lm-eval cannot open it (UndefinedError: 'missing' is undefined)"),
        ({"metric_list": [{"metric": "brier_score"}]}, "brier_score, whose lower values are better"),
        (
            {"metric_list": [{"metric": "seqeval", **MEAN}]},
            "seqeval, which is not one of lm-eval's own: code from the hub",
        ),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "code from the hub is not executed"),
    ],
)
def test_a_task_that_cannot_be_used_is_left_out_with_the_reason(
    folder: TaskFolder, found: Find, keys: dict[str, Any], reason: str
) -> None:
    folder.choices("good")
    folder.choices("other", **keys)
    folder.group("pair", ["good", "other"])
    suite = found("pair")
    assert list(suite.suite.tasks) == ["good"]
    (note,) = suite.notes
    assert note.startswith("other is left out: ")
    assert reason in note


def test_a_sampled_text_is_left_out_and_greedy_text_is_not(folder: TaskFolder, found: Find) -> None:
    folder.text("sampled", generation_kwargs={"until": ["!"], "temperature": 0.7})
    folder.text("greedy", generation_kwargs={"until": ["!"], "do_sample": False, "temperature": 0.7})
    suite = found("sampled,greedy")
    assert list(suite.suite.tasks) == ["greedy"]
    assert "sampled is left out: its predictions are sampled" in suite.notes[0]


def test_names_groups_and_tags_are_expanded_once_and_name_the_kind(folder: TaskFolder, found: Find) -> None:
    folder.choices("a")
    folder.choices("b", tag="bees")
    folder.choices("c", tag="bees")
    folder.group("inner", ["a", "nowhere"])
    folder.group("outer", ["inner", {"group": "inline", "task": ["b"]}, "bees"])
    suite = found("outer,a")
    assert {name: task.kind for name, task in suite.suite.tasks.items()} == {"a": "inner", "b": "inline", "c": "bees"}
    assert suite.notes == ("nowhere is left out: its group names it, but lm-eval has no such task",)
    assert found("a").suite.tasks["a"].kind == "multiple_choice"
    assert suite.suite.name == "lm-eval-outer+a"


def test_a_group_may_change_the_keys_of_its_tasks(folder: TaskFolder, found: Find) -> None:
    folder.choices("a")
    folder.group("changed", [{"task": "a", "doc_to_text": "Say {{text}}"}])
    suite = found("changed").suite
    assert str(suite.read(str(folder.path), "test")[0]["prompt"]).startswith("Say the red")


def test_a_validation_split_is_dev_and_without_one_dev_is_a_share_of_train(folder: TaskFolder, found: Find) -> None:
    folder.write("dev", colour_lines("dev", 6))
    files = {split: str(folder.path / f"{split}.jsonl") for split in ("train", "dev", "test")}
    folder.choices("three", validation_split="dev", dataset_kwargs={"data_files": files})
    folder.choices("two")
    suite, source = found("three,two", dev_share=0.3).suite, str(folder.path)
    by_split = {split: suite.read(source, split) for split in ("train", "dev", "test")}
    ids = {
        task: {s: {row["id"] for row in rows if row["task"] == task} for s, rows in by_split.items()}
        for task in suite.tasks
    }
    assert [len(ids["three"][s]) for s in by_split] == [40, 6, 12]
    assert ids["two"]["train"] | ids["two"]["dev"] == {f"two-train-{i}" for i in range(40)}
    assert not ids["two"]["train"] & ids["two"]["dev"]
    assert 4 <= len(ids["two"]["dev"]) <= 20


def test_a_test_split_without_targets_gives_way_to_validation(folder: TaskFolder, found: Find) -> None:
    folder.write("hidden", [{**line, "gold": -1} for line in colour_lines("hidden", 5)])
    names = {"train": "train", "validation": "test", "test": "hidden"}
    files = {split: str(folder.path / f"{name}.jsonl") for split, name in names.items()}
    folder.choices("glued", validation_split="validation", dataset_kwargs={"data_files": files})
    suite = found("glued").suite
    assert suite.definitions["glued"]["splits"] == {"train": "train", "dev": None, "test": "validation"}


def test_the_headline_may_be_chosen(folder: TaskFolder, found: Find) -> None:
    folder.choices("a")
    assert found("a").suite.tasks["a"].protocols["official"].headline == "acc"
    assert found("a", headline="acc_norm").suite.tasks["a"].protocols["official"].headline == "acc_norm"
    with pytest.raises(UsageError, match=r"suite.headline = 'f2': not a metric of a. Choose from acc, acc_norm"):
        found("a", headline="f2")


def test_each_filter_is_a_protocol(folder: TaskFolder, found: Find) -> None:
    filters = [
        {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]}
        for name, pattern in (("strict", "^ (\\w+)$"), ("flexible", "(red|blue|green)"))
    ]
    folder.text("a", filter_list=filters)
    assert list(found("a").suite.tasks["a"].protocols) == ["official", "flexible"]


def test_a_target_that_is_right_only_without_the_delimiter_loses_it(folder: TaskFolder, found: Find) -> None:
    folder.text("kept")
    folder.text("bare", filter_list=None)
    suite = found("kept,bare")
    first = {row["task"]: row["target"] for row in suite.suite.read(str(folder.path), "test").select([0, 12])}
    assert first == {"kept": " red", "bare": "red"}
    assert suite.notes == ("bare: targets are without lm-eval's target_delimiter, with which none would be right",)


def test_targets_with_a_stop_string_are_noted(folder: TaskFolder, found: Find) -> None:
    folder.text("a", doc_to_target="{{colour}}! really", generation_kwargs={"until": ["!"], "do_sample": False})
    assert "a: 40 of the first 40 training targets have one of its stop strings ('!')" in found("a").notes[-1]


def test_metrics_that_are_not_sums_are_left_out_by_name(folder: TaskFolder, found: Find) -> None:
    bleu = {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}
    folder.text("a", metric_list=[{"metric": "exact_match", **MEAN}, bleu])
    suite = found("a")
    assert suite.suite.definitions["a"]["metrics"] == [["exact_match", "mean"]]
    assert suite.notes == ("a: without bleu, which needs all documents at once (bleu)",)


def test_functions_of_the_users_files_are_found_and_guarded_by_their_hash(folder: TaskFolder, found: Find) -> None:
    (folder.path / "utils.py").write_text("def prompt(doc):\n    return 'Q: ' + doc['text']\n", encoding="utf-8")
    folder.choices("a", doc_to_text=None)
    file = folder.path / "a.yaml"
    file.write_text(file.read_text()[:-1] + ', "doc_to_text": !function utils.prompt}', encoding="utf-8")
    suite = found("a").suite
    assert suite.definitions["a"]["config"]["doc_to_text"] == "!function include_path:utils.prompt"
    assert suite.read(str(folder.path), "test")[0]["prompt"].startswith("Q: the red")
    (folder.path / "utils.py").write_text("def prompt(doc):\n    return doc['text']\n", encoding="utf-8")
    again = LmEvalGroups(group="a", lm_eval=suite.lm_eval, definitions=suite.definitions)
    with pytest.raises(DataError, match=r"utils\.py: the file has changed since the run"):
        again.fingerprint(str(folder.path))


def test_data_that_are_not_json_lines_are_an_error_that_names_the_task(folder: TaskFolder, found: Find) -> None:
    folder.choices("a")
    (folder.path / "train.jsonl").write_text("{'text': 1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"^a: the files of its data cannot be read"):
        found("a")


def test_another_version_of_lm_eval_is_a_warning(
    folder: TaskFolder, found: Find, caplog: pytest.LogCaptureFixture
) -> None:
    folder.choices("a")
    suite = found("a").suite
    then = LmEvalGroups(group="a", lm_eval="0.0.1", definitions=suite.definitions)
    assert then.fingerprint(str(folder.path)) == suite.fingerprint(str(folder.path))
    assert "the run used lm-eval 0.0.1, and" in caplog.text


def test_the_fingerprint_is_that_of_the_documents_of_each_task(folder: TaskFolder, found: Find) -> None:
    folder.choices("a")
    folder.choices("b")
    before = found("a,b").suite.fingerprint(str(folder.path))
    assert set(before) == {"a", "b"}
    (folder.path / "test.jsonl").rename(folder.path / "same.jsonl")
    files = {"train": str(folder.path / "train.jsonl"), "test": str(folder.path / "same.jsonl")}
    folder.choices("a", dataset_kwargs={"data_files": files})
    folder.write("other", colour_lines("other", 3))
    folder.choices("b", dataset_kwargs={"data_files": {**files, "test": str(folder.path / "other.jsonl")}})
    after = found("a,b").suite.fingerprint(str(folder.path))
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]


def test_an_unknown_name_names_the_nearest(folder: TaskFolder, found: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.lm_eval_groups.index as index

    only_ours = index.TaskManager  # reading lm-eval's own tasks takes many seconds

    def manager(include_path: str | None = None, include_defaults: bool = True) -> Any:
        return only_ours(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(index, "TaskManager", manager)
    folder.choices("toy_choices")
    with pytest.raises(UsageError, match=r"no group, tag or task 'toy_choice', nor does .*Did you mean 'toy_choices'"):
        found("toy_choice")


def _texts(rows: Sequence[Any]) -> list[str]:
    return [row["prompt"] + row["target"] for row in rows]


@pytest.mark.parametrize("keys", [{}, {"description": "Toys. "}, {"target_delimiter": "\n"}, {"gen_prefix": "It is"}])
def test_an_example_reads_as_lm_evals_own_in_context_example(
    folder: TaskFolder, found: Find, keys: dict[str, str]
) -> None:
    from lm_eval.tasks import TaskManager

    folder.choices("a", **keys)
    rows = found("a").suite.read(str(folder.path), "test")
    task = TaskManager(include_path=str(folder.path), include_defaults=False).load(["a"])["tasks"]["a"]
    for i, text in enumerate(_texts(rows)):
        document = task.dataset["test"][i]
        turn = task.build_qa_turn(
            q=task.doc_to_text(document),
            c=task.doc_to_choice(document),
            a=task.doc_to_target(document),
            gen_prefix=keys.get("gen_prefix"),
            tgt_delim=task.config.target_delimiter,
            few_delim="",
        )
        assert text == keys.get("description", "") + "".join(message.to_text() for message in turn)
        assert rows[i]["choices"] == [f"{task.config.target_delimiter}{colour}" for colour in COLOURS]
