"""Error rates of the verdicts by simulation: a small part of the table in docs/statistics.md."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from scipy.stats import binom

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "error_rates.py"
REPEATS = 250
MOST = binom.ppf(0.999, REPEATS, 0.06) / REPEATS  # False significance of 6 % exceeds this in one of 1000 tests.
LEAST = binom.ppf(0.001, REPEATS, 0.93) / REPEATS  # Coverage of 93 %, likewise.


@cache
def error_rates() -> ModuleType:
    """The script, which is in no package."""
    spec = importlib.util.spec_from_file_location("error_rates", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("n_rows", [2, 9])
@pytest.mark.parametrize("classes", [2, 44])
@pytest.mark.parametrize(("n_seeds", "n_examples"), [(2, 24), (2, 100), (3, 24), (5, 100)])
def test_equal_methods_are_rarely_significant_and_intervals_contain_the_truth(
    n_rows: int, classes: int, n_seeds: int, n_examples: int
) -> None:
    setting = {"n_seeds": n_seeds, "n_examples": n_examples, "classes": classes, "n_rows": n_rows}
    found = error_rates().simulate(error_rates().Cell(**setting, seeds_agree=True), REPEATS, seed=1)
    assert found.family <= MOST
    assert found.coverage >= LEAST


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_draws_alone_are_too_optimistic_about_a_macro_f1() -> None:
    """The reason for the deviations of examples, and for the warning where a run has none."""
    cell = error_rates().Cell(n_seeds=5, n_examples=100, classes=44, n_rows=2, seeds_agree=True)
    found = error_rates().simulate(cell, REPEATS, seed=1)
    assert found.draws_coverage < found.coverage
    assert found.draws_family > found.family


def test_the_table_of_the_page_is_that_of_the_recorded_run() -> None:
    root = SCRIPT.parents[1]
    recorded = (root / "benchmarks" / "error_rates.jsonl").read_text(encoding="utf-8").splitlines()
    assert "\n".join(error_rates().table(recorded)) in (root / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert {json.dumps(asdict(cell)) for cell in error_rates().cells()} == {
        json.dumps({key: value for key, value in json.loads(line).items() if key in error_rates().Cell.__annotations__})
        for line in recorded
    }


def test_the_table_has_a_line_for_each_recorded_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, out = error_rates(), tmp_path / "rates.jsonl"
    setting = {"n_seeds": 2, "n_examples": 24, "classes": 44, "seeds_agree": True}
    monkeypatch.setattr(module, "cells", lambda: [module.Cell(**setting, n_rows=n) for n in (2, 3)])
    for _ in range(2):  # The second call computes nothing.
        module.main([str(out), "--repeats", "3"])
    assert len(out.read_text().splitlines()) == 2
    module.main([str(out), "--table"])
    printed = capsys.readouterr().out
    assert printed.count("| 2 | yes | 24 | macro-F1, 44 classes |") == 2
    assert "at least 3 repeats" in printed
