"""``prompt.template.*`` keys: any name, JSON values, and part of a run's identity only if given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.config.keys import by_section, parse_assignments
from harness.config.request import read_config
from harness.config.spec import DataSpec, MethodSpec, RunSpec, SuiteSpec, run_id
from harness.config.template import template_arguments, template_in_words
from harness.errors import UsageError
from harness.scoring.comparable import question


def arguments(*assignments: str) -> dict[str, Any]:
    return template_arguments(by_section(parse_assignments(assignments))["prompt"], "chat")


def spec(**template: Any) -> RunSpec:
    return RunSpec(
        method=MethodSpec(name="empty", version=1),
        suite=SuiteSpec(name="toys", version=1, tasks={"colour": 1}),
        model=None,
        data=DataSpec(label="sample", sample=True, fingerprints={"test.jsonl": "d"}),
        prompt="chat",
        template=template,
    )


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("false", False),
        ("0", 0),
        ("low", "low"),
        ('"26 Jul 2024"', "26 Jul 2024"),
        ("2024-07-26", "2024-07-26"),
        ("none", None),
        ("null", None),
        ('["a", null]', ["a", None]),
        ('{"a": [1, {"b": true}]}', {"a": [1, {"b": True}]}),
        ("{a = 1}", {"a": 1}),
    ],
)
def test_a_value_is_of_json(typed: str, value: Any) -> None:
    assert arguments(f"prompt.template.x={typed}") == {"x": value}


def test_a_table_of_a_file_and_a_key_of_the_command_line_mean_the_same(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[prompt.template]\nenable_thinking = true\ndate = 2024-07-26\nstyle = {tone = 'calm'}\n")
    keys = {**read_config(file).keys, **parse_assignments(["prompt.template.enable_thinking=false"])}
    found = template_arguments(by_section(keys)["prompt"], "chat")
    assert found == {"enable_thinking": False, "date": "2024-07-26", "style": {"tone": "calm"}}
    assert arguments("prompt.template.style.tone=calm") == {"style": {"tone": "calm"}}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("prompt.enable_thinking=false", "prompt.template.NAME"),
        ("prompt.template=5", "prompt.template.NAME"),
        ("prompt.template.a-b=1", "'a-b' is not a name"),
        ("prompt.template.add_generation_prompt=false", "harness sets this argument itself"),
    ],
)
def test_a_wrong_key_is_wrong_use(assignment: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        arguments(assignment)


def test_arguments_of_a_template_need_chat_prompts() -> None:
    with pytest.raises(UsageError, match="add --prompt chat"):
        template_arguments({"template.enable_thinking": False}, None)


def test_arguments_identify_a_run_only_if_they_are_given() -> None:
    assert "template" not in spec().identity()
    assert spec(enable_thinking=False).identity()["template"] == {"enable_thinking": False}
    assert len({run_id(spec()), run_id(spec(enable_thinking=False)), run_id(spec(enable_thinking=True))}) == 3


def test_other_arguments_are_another_question_and_are_printed() -> None:
    assert question(spec(enable_thinking=False)) != question(spec())
    assert template_in_words({"enable_thinking": False}) == " (enable_thinking=False)"
    assert template_in_words({}) == ""
