"""What keeps the code in order: an engine without names of methods and tasks, small files and functions."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.registry import METHODS, SUITES, plugins, suite_class

ROOT = Path(__file__).parents[2]
PACKAGES = ("harness", "methods", "tasks")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
ENGINE = [path for path in MODULES if path.is_relative_to(ROOT / "harness")]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def code_strings(tree: ast.Module) -> Iterator[ast.Constant]:
    """String constants without docstrings, which may use real names in their examples."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node


@pytest.fixture(scope="module")
def installed_names() -> re.Pattern[str]:
    """Every method, suite and task of this project."""
    own = {
        name
        for group in (METHODS, SUITES)
        for name, plugin in plugins(group).items()
        if plugin.distribution == "mtlora-harness"
    }
    suites = [name for name, plugin in plugins(SUITES).items() if plugin.distribution == "mtlora-harness"]
    names = own | {task for name in suites for task in suite_class(name)().tasks}
    # Methods, a task (ReCoRD) and a suite that are also English words, a file format, and a tool that the engine needs.
    names -= {"arrow", "empty", "merge", "record", "lm-eval"}
    return re.compile("|".join(rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in sorted(names)))


def test_the_engine_has_no_method_suite_or_task_by_name(installed_names: re.Pattern[str]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
        for path in ENGINE
        for node in code_strings(ast.parse(path.read_text(encoding="utf-8")))
        if installed_names.search(node.value)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTIONS):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is longer than 60 lines"


def test_a_package_that_is_named_as_an_output_folder_is_not_ignored() -> None:
    """Patterns such as ``runs/`` without a leading slash would leave a package harness/runs out of git, unnoticed."""
    asked = ["harness/runs/x.py", "harness/build/x.py", "tests/dist/x.py"]
    done = subprocess.run(["git", "check-ignore", *asked], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("this is not a git checkout")
    assert done.stdout == ""
