"""The files of a submission to PromptCBLUE's competition.

The site takes a zip with two files at its top level (README of michael-wzhu/PromptCBLUE, "提交格式说明"):

- ``test_predictions.json``: the lines of test.json in their order, with the model's answers as ``target``;
- ``post_generate_process.py``: a script that needs only the standard library and turns this file into ``results.json``,
  which has the parsed answers by task: ``python post_generate_process.py test_predictions.json results.json``.

The script is put together from the sources of this suite's own ``official`` parsers, so that the site scores the same
answers as ``harness``.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from harness.errors import DataError
from harness.json_lines import read_json_lines
from harness.task import Example
from tasks.promptcblue import parsers_official, structured
from tasks.promptcblue.answers import HEADINGS, Entity, Event, Finding, Triple
from tasks.promptcblue.tasks import ALIASES, TASKS

PREDICTIONS: Final = "test_predictions.json"
SCRIPT: Final = "post_generate_process.py"
FIELDS: Final = ("input", "target", "answer_choices", "task_type", "task_dataset", "sample_id")
_OWN: Final = ("harness", "tasks")  # packages that the script cannot import
_HEAD: Final = '''# coding=utf-8
"""Turn test_predictions.json into results.json: python post_generate_process.py test_predictions.json results.json"""

from __future__ import annotations

import collections
'''


def submission_files(test: Path, predictions: Mapping[str, str]) -> Mapping[str, bytes]:
    """The two files. test: the test split. predictions: by sample_id, one for each line.

    Raises: DataError for a line without ``task_type`` whose task is not one of the sixteen.
    """
    columns = {"input": (str,), "task_dataset": (str,), "sample_id": (str, int)}
    lines = [
        json.dumps(_line(line, predictions[str(line["sample_id"])], f"{test}, line {number}"), ensure_ascii=False)
        for number, line in read_json_lines(test, columns)
    ]
    return {PREDICTIONS: "".join(f"{line}\n" for line in lines).encode(), SCRIPT: script().encode()}


def _line(line: Mapping[str, Any], prediction: str, where: str) -> dict[str, Any]:
    """A line of the test split with the official fields in their order, and the prediction as its target."""
    return {name: _field(line, name, where) for name in FIELDS} | {"target": prediction}


def _field(line: Mapping[str, Any], name: str, where: str) -> Any:
    if name in line or name in ("target", "answer_choices"):
        return line.get(name)
    task = ALIASES.get(line["task_dataset"], line["task_dataset"])
    if task not in TASKS:
        raise DataError(f"{where}: no column {name!r}. Give the competition's own test file")
    return TASKS[task].kind


def script() -> str:
    """The source of ``post_generate_process.py``."""
    return "\n".join([_HEAD, *_definitions(), *map(_source, (parsers_official, structured))])


def _definitions() -> Iterator[str]:
    """What the modules of the script import from this project, without newer syntax."""
    yield "NOT_PARSED = None"
    yield f"HEADINGS = {HEADINGS!r}"
    for kind in (Example, Entity, Event, Finding, Triple):
        fields = " ".join(field.name for field in dataclasses.fields(kind))
        optional = sum(field.default is None for field in dataclasses.fields(kind))
        yield f'{kind.__name__} = collections.namedtuple("{kind.__name__}", "{fields}", defaults=[None] * {optional})'
    yield ""


def _source(module: ModuleType) -> str:
    """A module's source without imports of this project and of ``__future__``."""
    source = inspect.getsource(module)
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in (*_OWN, "__future__"):
            lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    return "\n".join(lines) + "\n"
