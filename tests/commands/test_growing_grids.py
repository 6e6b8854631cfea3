"""Grids of learning rates that grow, through the installed command: their plan, their page, resuming after a kill."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.store.run_directory import find_runs
from harness.store.tuning import Tuning, read_tuning

Command = Callable[..., Any]
FILE = """
suite = "toys"
model = "{model}"
seeds = [0]
tune = {{ lr = [1e-3], by = "dev", max_points = 3 }}
settings = {{ train.steps = 3, train.batch_size = 4, eval.max_new_tokens = 3, eval.per_task = 2 }}

[[row]]
method = "lora_all"
"""


@pytest.fixture
def file(toy_model: Path, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(plugin))  # for the runs, which are processes of their own
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "leaderboards" / "grown.toml"
    path.parent.mkdir()
    path.write_text(FILE.format(model=toy_model))
    return path


def tuned(out: Path) -> list[Tuning]:
    found = [read_tuning(run) for run in find_runs(out)]
    return [tuning for tuning in found if tuning is not None]


@pytest.mark.slow
def test_a_grid_grows_from_one_rate_to_its_limit_or_until_its_best_is_inside(
    file: Path, harness: Command, tmp_path: Path
) -> None:
    plan = harness("plan", file, "--out", tmp_path / "runs")
    assert "at most 2 more if every grid of learning rates grows to its limit" in plan.out, plan.out
    done = harness("sweep", file, "--out", tmp_path / "runs")
    assert done.status == 0, done.err
    (search,) = tuned(tmp_path / "runs")
    rates = [point.lr for point in search.grid]
    assert min(rates) < 1e-3 < max(rates)
    assert search.open_ends == () or len(rates) == 3
    assert search.chosen in rates
    # The run of the chosen rate trains nothing again: it was trained in the search.
    steps = [r.training.steps for run in find_runs(tmp_path / "runs") if (r := run.record()) and r.training]
    assert steps == [3]
    assert all((run.path / "taken.json").exists() for run in find_runs(tmp_path / "runs") if run.record().training)
    page = harness("leaderboard", "grown", "--out", tmp_path / "runs")
    assert page.status == 0, page.err
    assert "Learning rates" in page.out
    assert all(f"{rate:g}" in page.out for rate in rates)
    again = harness("sweep", file, "--out", tmp_path / "runs")
    assert "4 of 4 runs are done" in again.out  # three of the search, one of the row


@pytest.mark.slow
def test_a_search_that_was_killed_while_its_grid_grew_keeps_what_was_done_and_ends(
    file: Path, harness: Command, start: Command, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    process = start("sweep", file, "--out", out)
    deadline = time.monotonic() + 200
    while not (done := finished(out / "tuning")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    again = harness("sweep", file, "--out", out)
    assert again.status == 0, again.err
    (search,) = tuned(out)
    after = finished(out / "tuning")
    assert done.items() <= after.items()  # nothing was done twice
    assert {point.run for point in search.grid} == set(after)
    assert min(point.lr for point in search.grid) < 1e-3 < max(point.lr for point in search.grid)


def finished(out: Path) -> dict[str, bytes]:
    """The record of each finished run, by name."""
    records = {run.name: run.path / "record.json" for run in find_runs(out)}
    return {name: path.read_bytes() for name, path in records.items() if path.exists()}
