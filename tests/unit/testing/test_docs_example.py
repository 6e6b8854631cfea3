"""The pages on methods: the example is a package that works, and the facts are those of the code."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.registry import method_class
from harness.testing.contract import contract

DOCS = Path(__file__).parents[3] / "docs"


def example_files() -> dict[str, str]:
    """The files of the example by name: each is a code block after a line with its name."""
    text = (DOCS / "your_own_method.md").read_text(encoding="utf-8")
    return dict(re.findall(r"`([\w.]+)`[^\n`]*:\n\n```(?:toml|python)\n(.*?)```", text, flags=re.DOTALL))


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The example is installed, in this process."""
    source, installed = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name, content in example_files().items():
        (source / name).write_text(content, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(installed), str(source)], check=True, timeout=120)
    sys.path.insert(0, str(installed))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(installed))


@pytest.mark.long
def test_the_example_is_listed_keeps_the_contract_and_runs(
    example: None, harness: Callable[..., Any], tmp_path: Path
) -> None:
    assert {"pyproject.toml", "my_lora.py"} == set(example_files())
    assert "a shared LoRA and one for each task" in harness("list", "my_lora").out
    for trial in contract("my_lora"):
        trial()
    text = (DOCS / "your_own_method.md").read_text(encoding="utf-8")
    (run,) = re.findall(r"^harness (run .*)$", text, flags=re.MULTILINE)
    done = harness(*run.split(), "--out", tmp_path)
    assert done.status == 0, done.err
    assert "KUAKE-QIC" in done.out


def sections() -> dict[str, str]:
    """The text of the page on methods about each method that trains."""
    parts = re.split(r"^## (.+)\n", (DOCS / "methods.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: text for names, text in zip(parts[1::2], parts[2::2], strict=True) for name in names.split(", ")}


@pytest.mark.parametrize("name", ["lora_all", "lora_single", "moe_lora", "cgc_lora", "lorahub", "c_poly", "moa"])
def test_the_page_states_the_defaults_and_ablations_of_the_code(name: str) -> None:
    text, method = sections()[name], method_class(name)()
    for field, value in re.findall(r"`(\w+)` (\d+(?:\.\d+)?)\b", text):
        assert getattr(method, field) == float(value), f"{name}: {field}"
    for field, default in re.findall(r"^\| [^|]+ \| `(\w+)` \| `(\w+)`", text, flags=re.MULTILINE):
        assert getattr(method, field) == default, f"{name}: {field}"
    ablations = text.partition("*Ablations:*")[2]
    assert set(method.ablations) <= set(re.findall(r"`(\w+)`", ablations)), name
