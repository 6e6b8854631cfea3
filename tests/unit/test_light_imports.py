"""Commands that train nothing start at once, because their packages can be imported without the heavy libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import importlib, pkgutil, sys

name = sys.argv[1]
found = importlib.import_module(name)
for module in pkgutil.walk_packages(getattr(found, "__path__", []), f"{name}."):
    importlib.import_module(module.name)
print(*[heavy for heavy in ("torch", "transformers", "datasets", "lm_eval") if heavy in sys.modules])
"""
LIGHT = (
    "harness.errors", "harness.seeding", "harness.hashing", "harness.task", "harness.method", "harness.inference",
    "harness.registry", "harness.config", "harness.store", "harness.data", "harness.reporting", "harness.scoring",
    "harness.sweep", "harness.leaderboard", "harness.cli",
)  # fmt: skip


@pytest.mark.parametrize("package", LIGHT)
def test_no_module_of_the_package_imports_a_heavy_library(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, package], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
