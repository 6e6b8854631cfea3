"""Chat templates with arguments, and tokenizers that cannot write the targets: in run, --dry-run and validate."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
THINKS = "{{ messages[-1]['content'] }}{% if thinking is not defined or thinking %}<think>{% endif %}"
QUICK = ["--set", "eval.max_new_tokens=4", "--set", "eval.per_task=2"]


@pytest.fixture
def model_with(toy_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """The toy model with a chat template, and a regular expression that its tokenizer replaces by x."""

    def make(template: str = THINKS, lost: str | None = None) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(toy_model, folder, dirs_exist_ok=True)
        (folder / "chat_template.jinja").write_text(template)
        if lost is not None:
            content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
            content["normalizer"] = {"type": "Replace", "pattern": {"Regex": lost}, "content": "x"}
            (folder / "tokenizer.json").write_text(json.dumps(content))
        return folder

    return make


def test_arguments_of_a_chat_template_are_recorded_and_change_the_prompts(
    harness: Command, model_with: Callable[..., Path], tmp_path: Path
) -> None:
    given = ["--suite", "toys", "--model", model_with(), "--prompt", "chat", *QUICK, "--out", tmp_path / "runs"]
    quiet = ["--set", "prompt.template.thinking=false"]
    plans = [harness("run", "--method", "lora_all", *given, *more, "--dry-run", "--json").json for more in ([], quiet)]
    assert [plan["spec"]["template"] for plan in plans] == [{}, {"thinking": False}]
    loud, silent = (plan["plan"]["tasks"]["colour"]["prompt_tokens"] for plan in plans)
    assert loud == silent + len("<think>")
    done = harness("run", "--method", "no_finetune", *given, *quiet, "--json").json
    assert done["record"]["spec"]["template"] == {"thinking": False}
    again = harness("evaluate", done["directory"], "--split", "dev", "--json")
    assert again.status == 0, again.err


def test_validate_counts_the_tokens_of_prompts_in_the_chat_template(
    harness: Command, model_with: Callable[..., Path]
) -> None:
    def longest(*arguments: str) -> int:
        found = harness("validate", "toys", "--model", model_with(), "--json", *arguments)
        return int(found.json["tasks"][0]["prompt"]["max"])

    chat = longest("--prompt", "chat")
    assert chat == longest() + len("<think>")
    assert longest("--prompt", "chat", "--set", "prompt.template.thinking=false") == longest()
    wrong = harness("validate", "toys", "--model", model_with(), "--set", "train.lr=1")
    assert (wrong.status, "prompt.template.NAME" in wrong.err) == (2, True)


def test_try_renders_the_chat_template_with_the_arguments_of_its_run(
    harness: Command, model_with: Callable[..., Path], plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picky = "{% if thinking is not defined %}{{ raise_exception('Say whether to think') }}{% endif %}" + THINKS
    given = ["--suite", "toys", "--model", model_with(picky), "--prompt", "chat", "--out", tmp_path / "runs"]
    quiet = ["--set", "prompt.template.thinking=false"]
    run = harness("run", "--method", "no_finetune", *given, *quiet, *QUICK, "--json").json["directory"]
    made = [json.loads(line) for line in (Path(run) / "predictions" / "colour.jsonl").read_text().splitlines()]
    rows = map(json.loads, (plugin / "toy_plugin" / "data" / "test.jsonl").read_text().splitlines())
    prompts = {row["id"]: row["prompt"] for row in rows}
    for prediction in made:
        monkeypatch.setattr("sys.stdin", io.StringIO(prompts[prediction["id"]]))
        assert harness("try", run, "--task", "colour").out == prediction["text"] + "\n"
    assert made


@pytest.mark.parametrize("command", [["run", "--method", "no_finetune", "--suite"], ["validate"]])
def test_a_chat_template_that_raises_is_one_line_of_error(
    harness: Command, model_with: Callable[..., Path], tmp_path: Path, command: list[str]
) -> None:
    model = model_with("{{ raise_exception('Roles must alternate') }}")
    out = ["--out", tmp_path / "runs"] if command[0] == "run" else []
    failed = harness(*command, "toys", "--model", model, "--prompt", "chat", *out)
    assert failed.status == 1
    (error,) = [line for line in failed.err.splitlines() if line.startswith("error")]
    assert "Roles must alternate" in error
    assert "--prompt plain" in error
    assert "Traceback" not in failed.err


def test_a_tokenizer_that_loses_characters_of_some_tasks_is_a_warning(
    harness: Command, model_with: Callable[..., Path], tmp_path: Path
) -> None:
    model = model_with(lost="[klt]")
    report = harness("validate", "toys", "--model", model)
    assert report.status == 0
    out = ["--out", tmp_path / "runs"]
    planned = harness("run", "--method", "no_finetune", "--suite", "toys", "--model", model, "--dry-run", *out)
    assert planned.status == 0, planned.err
    for text in (report.out, planned.err):
        assert "the tokenizer loses 'l'" in text
        assert "percent under the protocol official" in text
    assert "No flaws found" not in report.out
    assert harness("validate", "toys", "--model", model, "--json").json["round_trips"][0]["lost"]


def test_a_tokenizer_with_which_no_answer_can_be_right_stops_the_run(
    harness: Command, model_with: Callable[..., Path], tmp_path: Path
) -> None:
    model = model_with(lost="[a-z]")
    failed = harness("run", "--method", "lora_all", "--suite", "toys", "--model", model, "--out", tmp_path / "runs")
    assert failed.status == 1
    assert "no prediction can be correct: the tokenizer loses" in failed.err
    assert harness("validate", "toys", "--model", model).status == 1
