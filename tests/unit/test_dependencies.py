"""What is imported is declared as a dependency, and what is declared is imported."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = ("harness", "methods", "tasks")

# Declared, but not imported by our own code.
USED_BY_OTHERS = {
    "bitsandbytes": "transformers quantises models with it",
    "gguf": "transformers reads GGUF files with it",
    "protobuf": "transformers reads the sentencepiece files of tokenizers with it",
    "sentencepiece": "transformers reads the sentencepiece files of tokenizers with it",
}
# Imported, but not a dependency of users.
NOT_DECLARED = {"pytest": "only pytest itself imports harness.testing.pytest_plugin, through its entry point"}


def _distribution(requirement: str) -> str:
    return _canonical(re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0])


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    """The distributions of [project.dependencies] and of the extras for users; dev and browser serve the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in ("dev", "browser")}
    lines = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    return {_distribution(line) for line in lines} - {"mtlora-harness"}


def _provided() -> dict[str, str]:
    """The distribution of each module at the top level of what is declared and installed.

    A module of another distribution counts as one of its own name, which is not declared either. To read the files of
    every installed distribution would take seconds.
    """
    found: dict[str, str] = {}
    for name in declared() | set(NOT_DECLARED):
        try:
            files = distribution(name).files or []
        except PackageNotFoundError:
            continue
        found.update({file.parts[0].removesuffix(".py"): name for file in files if file.suffix == ".py"})
    return found


@cache
def imported() -> dict[str, list[str]]:
    """The distributions that our code imports, each with the files."""
    by_module = _provided()
    files: dict[str, list[str]] = defaultdict(list)
    for path in sorted(path for package in OURS for path in (ROOT / package).rglob("*.py")):
        for module in _modules(ast.parse(path.read_text(encoding="utf-8"))) - {*OURS, *sys.stdlib_module_names}:
            distribution = by_module.get(module, _canonical(module))
            files[distribution].append(path.relative_to(ROOT).as_posix())
    return files


def _modules(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def test_every_import_is_declared() -> None:
    missing = {name: files for name, files in imported().items() if name not in declared() | set(NOT_DECLARED)}
    assert not missing, "Add these to [project.dependencies] in pyproject.toml"


def test_every_declared_distribution_is_imported_or_has_a_stated_reason() -> None:
    assert not declared() - set(imported()) - set(USED_BY_OTHERS)


def test_the_stated_exceptions_are_still_exceptions() -> None:
    assert set(USED_BY_OTHERS) <= declared() - set(imported())
    assert set(NOT_DECLARED) <= set(imported()) - declared()
