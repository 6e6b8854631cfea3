"""``pytest --harness-method NAME`` for a method of another package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_pytest(plugin: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    env = {**os.environ, "PYTHONPATH": str(plugin), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.slow
def test_a_third_partys_method_is_held_to_its_contract_without_a_test_file(plugin: Path, tmp_path: Path) -> None:
    done = run_pytest(plugin, tmp_path, "--harness-method", "toy_lora", "-vv")
    assert done.returncode == 0, done.stdout
    assert "a_fold_is_its_route" in done.stdout
    assert "toy_lora" in done.stdout


@pytest.mark.long
def test_an_unknown_method_is_a_usage_error_with_the_nearest_name(plugin: Path, tmp_path: Path) -> None:
    done = run_pytest(plugin, tmp_path, "--harness-method", "toy_lroa")
    assert done.returncode == 4
    assert "toy_lora" in done.stdout + done.stderr
