"""The two files of a submission: the competition's fields in their order, and a script that parses as ``official``."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import DataError
from harness.task import NOT_PARSED, Example
from tasks.promptcblue.structured import LISTS, REPORT, TEXTS, structured_answer
from tasks.promptcblue.submission import FIELDS, PREDICTIONS, SCRIPT, script, submission_files
from tasks.promptcblue.tasks import ALIASES, TASKS

ANSWERS = {
    "CMeEE-V2": (
        "上述句子中的实体包含：\n疾病实体：感冒，咳\n药物实体：",
        [{"entity": "感冒", "type": "疾病"}, {"entity": "咳", "type": "疾病"}],
    ),
    "CMeIE": (
        "具有病因关系的头尾实体对如下：头实体为感冒，尾实体为病毒。",
        [{"predicate": "病因", "subject": "感冒", "object": "病毒"}],
    ),
    "CHIP-CDN": ("感冒，没有", [{"entity": "感冒", "type": "normalization"}]),
    "CHIP-CDEE": (
        "事件如下：\n主体词：痛；发生状态：否定；描述词：轻，钝；解剖部位：头",
        [{"主体词": "痛", "发生状态": "否定", "描述词": ["轻", "钝"], "解剖部位": ["头"]}],
    ),
    "CHIP-STS": ("相同", "是的"),
    "CHIP-CTC": (" 疾病\n", "疾病"),
    "CHIP-MDCFNPC": (
        "判别如下：\n咳：疾病\n痰：也许",
        [{"entity": "咳", "attr": "疾病"}, {"entity": "痰", "attr": "不标注"}],
    ),
    "KUAKE-IR": ("", ""),
    "MedDG": ("多喝水。", "多喝水。"),
    "IMCS-V2-MRG": ("报告如下：\n主诉：咳嗽。\n诊断：感冒", {"主诉": "咳嗽。", "诊断": "感冒"}),
    "IMCS-V2-SR": ("判断为：\n咳：x", [{"entity": "咳", "attr": "无法根据上下文确定病人是否患有该症状"}]),
    "Text2DT": ("什么", [{"role": "D", "logical_rel": "null", "triples": []}]),
    "CMedCausal": ("什么", []),
}  # fmt: skip
CHOICES = ["疾病", "药物", "感冒", "病因"]


def line(task: str, number: int, **other: Any) -> dict[str, Any]:
    kind = TASKS[task].kind if task in TASKS else "other"
    fields = {"input": f"问{number}", "target": "", "answer_choices": CHOICES, "task_type": kind}
    return {**fields, "task_dataset": task, "sample_id": f"test-{number}", **other}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), encoding="utf-8")
    return path


def test_every_task_is_parsed_by_its_official_parser() -> None:
    ours = {**{task: parse for task, (parse, _) in LISTS.items()}, **TEXTS}
    names = {ALIASES.get(task, task) for task in ours}
    assert names | {REPORT} == set(TASKS)
    for task, parse in ours.items():
        assert parse is TASKS[ALIASES.get(task, task)].protocols["official"].parse


@pytest.mark.parametrize("task", ANSWERS)
def test_answers_have_the_competitions_form(task: str) -> None:
    text, expected = ANSWERS[task]
    assert structured_answer(task, text, CHOICES) == expected


def test_the_script_alone_writes_the_same_answers(tmp_path: Path) -> None:
    lines = [line(task, i, target=text) for i, (task, (text, _)) in enumerate(ANSWERS.items())]
    lines.append(line("CMeEE-V2", 99, target="\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")))
    write(tmp_path / PREDICTIONS, lines)
    (tmp_path / SCRIPT).write_text(script(), encoding="utf-8")
    command = [sys.executable, "-I", "-S", SCRIPT, PREDICTIONS, "results.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(found) == list(ANSWERS)
    for i, (task, (_, expected)) in enumerate(ANSWERS.items()):
        assert found[task][0] == {"sample_id": f"test-{i}", "answer": expected}
    assert found["CMeEE-V2"][1] == {"sample_id": "test-99", "answer": []}


def test_the_script_runs_on_earlier_pythons_and_imports_the_standard_library_only() -> None:
    tree = ast.parse(script(), feature_version=(3, 7))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= set(sys.stdlib_module_names)
    assert not {"dataclasses", "slots"} & imported
    defined = Counter(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    assert max(defined.values()) == 1, "a function of one module would replace that of another"


@pytest.fixture(scope="module")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The script, imported as a module."""
    file = tmp_path_factory.mktemp("submission") / SCRIPT
    file.write_text(script(), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("post_generate_process", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([*LISTS, *TEXTS, REPORT]),
    st.lists(
        st.sampled_from(
            [*"疾病实体：，。；\n", "头实体为", "，尾实体为", "主诉：", "具有病因关系的头尾实体对如下：", "x"]
        )
    ),
)
def test_the_script_gives_the_answers_of_the_official_parsers(standalone: Any, task: str, pieces: list[str]) -> None:
    text, name = "".join(pieces), ALIASES.get(task, task)
    answer = (
        TASKS[name]
        .protocols["official"]
        .parse(text, Example(id="", task=name, prompt="", target="", choices=tuple(CHOICES)))
    )
    found = standalone.structured_answer(task, text, CHOICES)
    assert found == structured_answer(task, text, CHOICES)
    assert len(found) == (0 if answer is NOT_PARSED else len(answer))


def test_the_lines_are_those_of_the_test_file_with_the_official_fields_in_their_order(tmp_path: Path) -> None:
    lines = [
        line("CHIP-CTC", 1),
        {"sample_id": 7, "task_dataset": "CMeIE-V2", "input": "问\n？", "answer_choices": None, "extra": 1},
        line("Text2DT", 3, target="withheld?"),
    ]
    test = write(tmp_path / "test.json", lines)
    files = submission_files(test, {"test-1": "疾病", "7": "没有\u2028", "test-3": ""})
    assert list(files) == [PREDICTIONS, SCRIPT]
    content = files[PREDICTIONS].decode()
    assert content.count("\n") == 3
    assert content.endswith("\n")
    found = [json.loads(x) for x in content.split("\n")[:-1]]
    assert [tuple(x) for x in found] == [FIELDS] * 3
    assert [x["target"] for x in found] == ["疾病", "没有\u2028", ""]
    assert [x["sample_id"] for x in found] == ["test-1", 7, "test-3"]
    assert found[1] == {
        "input": "问\n？", "target": "没有\u2028", "answer_choices": None, "task_type": "spo_generation",
        "task_dataset": "CMeIE-V2", "sample_id": 7,
    }  # fmt: skip
    assert files[SCRIPT].decode() == script()


def test_a_line_without_the_type_of_an_unknown_task_is_not_the_competitions(tmp_path: Path) -> None:
    lines = [line("CHIP-CTC", 1), {"sample_id": 2, "task_dataset": "Text2DT", "input": "问"}]
    with pytest.raises(DataError, match=r"line 2: no column 'task_type'\. Give the competition's own test file"):
        submission_files(write(tmp_path / "test.json", lines), {"test-1": "", "2": ""})


def test_golden_predictions_have_the_released_answers(shared_data: Path) -> None:
    golden = shared_data / "golden" / "promptcblue.jsonl"
    if not golden.is_file():
        pytest.skip(f"no golden predictions at {golden}")
    with golden.open(encoding="utf-8") as file:
        for example in map(json.loads, file):
            ours = structured_answer(example["task"], example["prediction"], example["answer_choices"])
            theirs = example["predicted_answer"]
            if example["task"] == "CHIP-CDN":  # these came out of a set
                ours, theirs = ({item["entity"] for item in items} for items in (ours, theirs))
            assert ours == theirs, (example["task"], example["prediction"])


def test_the_real_test_split_becomes_a_submission_of_all_its_lines(shared_data: Path) -> None:
    test = shared_data / "promptcblue" / "test.json"
    with test.open(encoding="utf-8") as file:
        lines = [json.loads(x) for x in file]
    files = submission_files(test, {x["sample_id"]: x["target"] for x in lines})
    assert [json.loads(x) for x in files[PREDICTIONS].decode().split("\n")[:-1]] == lines
    assert all(tuple(x) == FIELDS for x in lines)
