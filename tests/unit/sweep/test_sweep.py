"""A leaderboard's file from plan to Markdown, on toys; runs are made in this process unless a test says otherwise."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from logged import messages

from harness.errors import HarnessError
from harness.pipeline.execute import execute
from harness.pipeline.resolve import resolve
from harness.store.record import Failure
from harness.store.run_directory import find_runs
from harness.store.tuning import read_tuning
from harness.sweep.executors import LOST, Executor
from harness.sweep.jobs import Job, Jobs
from harness.sweep.scheduler import Summary, SweepOptions, sweep
from harness.sweep.spec import read_board

Command = Callable[..., Any]
TUNED = """
tune = { lr = [1e-2, 1e-3], max_points = 2 }
baselines = ["majority"]
[[row]]
method = "lora_all"
"""


@dataclass
class Ended:
    """A run that is done as soon as it starts."""

    status: int

    def poll(self) -> int:
        return self.status

    def wait(self) -> int:
        return self.status

    def terminate(self) -> None:
        raise AssertionError("it has ended already")


class Unlimited:
    """An executor that starts as many runs as are asked for."""

    def capacity(self, wanted: int | None, peak: int | None) -> int:
        return wanted or 1


@dataclass
class Here(Unlimited):
    """An executor that runs jobs in this process, at once.

    broken: error messages of runs that fail, by label.
    """

    broken: dict[str, str] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    def start(self, job: Job) -> Ended:
        self.made.append(job.label)
        if job.label in self.broken:
            job.run.write("failure.json", failure(self.broken[job.label]))
            return Ended(1)
        try:
            execute(resolve(job.asked), job.out)
        except HarnessError:
            return Ended(1)
        return Ended(0)


def failure(message: str) -> Failure:
    return Failure(
        stage="train",
        where=None,
        error="HarnessError",
        message=message,
        traceback="",
        failed_at=datetime(2025, 1, 1, tzinfo=UTC),
    )


def run_all(path: Path, executor: Executor, **options: Any) -> tuple[Summary, list[str]]:
    """Sweep a file. Returns: the summary and the messages."""
    jobs = Jobs(read_board(path), path.parent.parent / "runs")
    with messages() as lines:
        return sweep(jobs, path.stem, executor, SweepOptions(poll_seconds=0.01, **options)), lines


@pytest.mark.long
def test_every_rate_is_tried_on_dev_and_the_best_is_used_for_all_seeds(
    board_file: Callable[[str], Path], plugin: Path, tmp_path: Path
) -> None:
    path = board_file(
        'tune = { lr = [1e-2, 1e-5], max_points = 2 }\nbaselines = ["majority"]\n[[row]]\nmethod = "toy_lora"\n'
    )
    here = Here()
    done, said = run_all(path, here)
    assert done.ok
    assert (done.n_done, done.n_all) == (5, 5)
    assert here.made[:2] == ["toy_lora, lr 1e-05 on dev", "toy_lora, lr 0.01 on dev"]
    assert sorted(here.made[2:]) == ["majority, seed 0", "toy_lora, seed 0", "toy_lora, seed 1"]
    assert "[5/5]" in said[-1]
    assert "0 left" in said[-1]
    trained = [r for r in find_runs(tmp_path / "runs") if r.name.startswith("toy_lora")]
    tuned = find_runs(tmp_path / "runs" / "tuning")
    means = {r.spec().train.lr: r.scores().root["official"].mean for r in tuned}
    assert {r.spec().eval.split for r in tuned} == {"dev"}
    assert {r.spec().seed for r in tuned} == {0}
    best = min(lr for lr, mean in means.items() if mean == max(means.values()))
    assert {(r.spec().seed, r.spec().train.lr, r.spec().eval.split) for r in trained} == {
        (0, best, "test"),
        (1, best, "test"),
    }
    for run in trained:
        tuning = read_tuning(run)
        assert tuning is not None
        assert {t.lr: t.mean for t in tuning.grid} == means
        assert tuning.chosen == best
    kept = json.loads((tmp_path / "runs" / "tune.json").read_text())
    assert kept["toys"][0]["label"] == "toy_lora"

    again = Here()
    assert run_all(path, again)[0].ok
    assert again.made == []


@pytest.mark.long
def test_a_failed_run_stops_only_what_needs_it(board_file: Callable[[str], Path], plugin: Path) -> None:
    path = board_file("""
tune = { lr = [1e-2, 1e-3], max_points = 2 }
[[row]]
method = "lora_all"
[[row]]
method = "toy_lora"
""")
    errors = {"lora_all, lr 0.01 on dev": "out of toys", "toy_lora, seed 1": "broken"}
    done, _ = run_all(path, Here(broken=errors))
    assert not done.ok
    assert done.failed == {
        "lora_all, lr 0.01 on dev": "HarnessError: out of toys",
        "toy_lora, seed 1": "HarnessError: broken",
    }
    assert done.waiting == ("lora_all",)
    assert "failed: toy_lora, seed 1: HarnessError: broken" in list(done.lines())
    here = Here()
    done, _ = run_all(path, here)
    assert done.ok
    assert here.made[0] == "lora_all, lr 0.01 on dev"
    assert sorted(here.made[1:]) == ["lora_all, seed 0", "lora_all, seed 1", "toy_lora, seed 1"]


def test_an_impossible_budget_is_named_with_the_least_and_the_others_run(
    board_file: Callable[[str], Path], plugin: Path, harness: Command, tmp_path: Path
) -> None:
    path = board_file('baselines = ["majority"]\n[[row]]\nmethod = "cgc_lora"\n')
    done, _ = run_all(path, Here())
    assert list(done.failed) == ["cgc_lora"]
    assert "active:8" in done.failed["cgc_lora"]
    assert (done.n_done, done.n_all) == (1, 1)
    planned = harness("plan", path, "--out", tmp_path / "runs")
    assert planned.status == 1
    assert "not possible: cgc_lora: CGCLoRA needs at least active:8" in planned.out


@pytest.mark.long
def test_a_rate_at_which_training_diverges_is_out_and_not_tried_again(
    board_file: Callable[[str], Path], plugin: Path, tmp_path: Path
) -> None:
    path = board_file(
        'tune = { lr = [1e-3, 1e30], max_points = 2 }\n[[row]]\nmethod = "toy_lora"\nsettings.train.steps = 4\n'
    )
    done, said = run_all(path, Here())
    assert done.ok
    assert any("diverged" in line for line in said)
    run = next(r for r in find_runs(tmp_path / "runs"))
    tuning = read_tuning(run)
    assert tuning is not None
    assert [(t.lr, t.mean is None) for t in tuning.grid] == [(1e-3, False), (1e30, True)]
    again = Here()
    assert run_all(path, again)[0].ok
    assert again.made == []


def test_equal_runs_of_rows_and_sweeps_are_made_once(board_file: Callable[[str], Path], plugin: Path) -> None:
    path = board_file("""
[[row]]
method = "majority"
[[sweep]]
name = "rows"
method = "majority"
grid = { train.per_task = ["none", 4] }
""")
    here = Here()
    done, _ = run_all(path, here)
    assert done.n_all == 4
    assert len(here.made) == 4


@dataclass
class Slow(Unlimited):
    """Runs jobs in this process, each at its third look; counts how many go on at once."""

    here: Here = field(default_factory=Here)
    going: int = 0
    most: int = 0

    def start(self, job: Job) -> Any:
        self.going += 1
        self.most = max(self.most, self.going)
        return SlowProcess(self, job)


@dataclass
class SlowProcess:
    """See Slow."""

    slow: Slow
    job: Job
    looks: int = 0
    status: int = 0

    def wait(self) -> int:
        return self.status

    def terminate(self) -> None:
        raise AssertionError("nobody stops it")

    def poll(self) -> int | None:
        self.looks += 1
        if self.looks < 3:
            return None
        if self.looks == 3:
            self.status = self.slow.here.start(self.job).status
            self.slow.going -= 1
        return self.status


def test_as_many_runs_as_jobs_run_at_once(board_file: Callable[[str], Path], plugin: Path) -> None:
    path = board_file('[[row]]\nmethod = "majority"\n[[row]]\nmethod = "nearest"\n')
    slow = Slow()
    done, _ = run_all(path, slow, n_parallel=3)
    assert (done.ok, done.n_done, slow.most, slow.going) == (True, 4, 3, 0)


@dataclass
class Roomy(Here):
    """An executor that reports the peaks it was asked about, and has room for two runs."""

    peaks: list[int | None] = field(default_factory=list)

    def capacity(self, wanted: int | None, peak: int | None) -> int:
        self.peaks.append(peak)
        return 2


def test_an_executor_has_room_by_the_largest_measured_peak(
    board_file: Callable[[str], Path], plugin: Path, tmp_path: Path
) -> None:
    """Runs on a CPU measure nothing that is of use for a GPU; two records are changed to those of a GPU."""
    path = board_file('[[row]]\nmethod = "toy_lora"\n')
    first = Roomy()
    assert run_all(path, first, n_parallel=None)[0].ok
    assert set(first.peaks) == {None}
    for run, generation in zip(find_runs(tmp_path / "runs"), (3 * 2**30, 5 * 2**30), strict=True):
        record = json.loads((run.path / "record.json").read_text())
        record["provenance"]["hardware"]["gpu"] = "a GPU"
        record["training"]["peak_memory_bytes"] = 4 * 2**30
        record["generation"]["peak_memory_bytes"] = generation
        (run.path / "record.json").write_text(json.dumps(record))
    again = Roomy()
    assert run_all(path, again, n_parallel=None)[0].ok
    assert set(again.peaks) == {5 * 2**30}


@pytest.mark.long
def test_the_longest_runs_start_first(board_file: Callable[[str], Path], plugin: Path) -> None:
    path = board_file("""
tune = { lr = [1e-2], max_points = 1 }
baselines = ["majority"]
[[row]]
method = "toy_lora"
settings.train.steps = 1
settings.train.lr = 0.1
[[row]]
method = "lora_all"
settings.train.steps = 3
settings.train.lr = 0.1
[[row]]
method = "lora_all"
settings.train.steps = 1
""")
    here = Here()
    assert run_all(path, here)[0].ok
    labels = [label.partition(",")[0] for label in here.made]
    assert labels[:4] == [
        "lora_all train.steps=1",
        *["lora_all train.lr=0.1 train.steps=3"] * 2,
        "toy_lora train.lr=0.1 train.steps=1",
    ]
    assert here.made[0].endswith("on dev")
    assert labels[-1] == "majority"


def test_after_a_failure_nothing_more_is_started_where_that_was_asked_for(
    board_file: Callable[[str], Path], plugin: Path
) -> None:
    path = board_file('[[row]]\nmethod = "toy_lora"\n')
    here = Here(broken={"toy_lora, seed 0": "no toys"})
    done, _ = run_all(path, here, keep_going=False)
    assert not done.ok
    assert here.made == ["toy_lora, seed 0"]


@dataclass
class Losing(Here):
    """An executor whose workers die under each job a number of times.

    losses: by label.
    """

    losses: dict[str, int] = field(default_factory=dict)

    def start(self, job: Job) -> Ended:
        if self.losses.get(job.label, 0):
            self.losses[job.label] -= 1
            self.made.append(job.label)
            return Ended(LOST)
        return super().start(job)


def test_a_run_whose_worker_was_lost_is_started_again(board_file: Callable[[str], Path], plugin: Path) -> None:
    path = board_file('baselines = ["majority", "nearest"]\n')
    losing = Losing(losses={"majority, seed 0": 2})
    done, said = run_all(path, losing)
    assert (done.ok, done.n_done) == (True, 2)
    assert sorted(losing.made) == [*["majority, seed 0"] * 3, "nearest, seed 0"]
    assert sum("its worker was lost; it is started again" in line for line in said) == 2


def test_a_run_that_loses_every_worker_fails_and_the_others_run(
    board_file: Callable[[str], Path], plugin: Path
) -> None:
    path = board_file('baselines = ["majority", "nearest"]\n')
    losing = Losing(losses={"majority, seed 0": 99})
    done, _ = run_all(path, losing)
    assert losing.made.count("majority, seed 0") == 3
    assert done.failed == {"majority, seed 0": "its worker was lost 3 times, as one that runs out of memory is"}
    assert (done.n_done, done.n_all) == (1, 2)


class Nothing(Unlimited):
    """An executor whose runs end without a result."""

    def start(self, job: Job) -> Ended:
        return Ended(0)


def test_a_sweep_whose_data_change_under_it_stops(board_file: Callable[[str], Path], plugin: Path) -> None:
    path = board_file('baselines = ["majority", "nearest"]\n')
    with pytest.raises(HarnessError, match=r"majority, seed 0 was planned as majority-toys-.*have changed"):
        run_all(path, Nothing())


def test_a_run_of_another_process_is_waited_for_and_not_begun(board_file: Callable[[str], Path], plugin: Path) -> None:
    path = board_file('baselines = ["majority"]\n')
    (job,) = Jobs(read_board(path), path.parent.parent / "runs").all_jobs()
    locked, release = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with job.run.lock():
            locked.set()
            release.wait(20)

    other = threading.Thread(target=elsewhere)
    other.start()
    locked.wait(20)
    threading.Timer(1.0, release.set).start()
    here = Here()
    done, said = run_all(path, here, recheck_seconds=0.1)
    other.join()
    waiting = f"waiting for majority, seed 0: {job.run.path} is in use by process {os.getpid()} on host"
    assert [line.startswith(waiting) for line in said[:2]] == [True, False]
    assert done.ok
    assert here.made == ["majority, seed 0"]


@pytest.mark.long
def test_a_plan_counts_runs_parameters_steps_and_time(
    board_file: Callable[[str], Path], plugin: Path, harness: Command, tmp_path: Path
) -> None:
    path = board_file(
        'tune = { lr = [1e-2, 1e-3], max_points = 2 }\nbaselines = ["majority"]\n[[row]]\nmethod = "lora_all"\n'
    )
    before = harness("plan", path, "--out", tmp_path / "runs", "--json").json
    assert (before["n_runs"], before["n_done"], before["seconds"]) == (5, 0, None)
    row = before["lines"][1]
    assert (row["label"], row["steps"], row["runs"]) == ("lora_all", 2, 4)
    # rank 4 on the seven linear layers of each of two blocks: r (d_in + d_out)
    assert row["parameters"]["stored"] == 4 * 2 * (64 + 48 + 48 + 64 + 3 * 96)
    run_all(path, Here())
    after = harness("plan", path, "--out", tmp_path / "runs", "--json").json
    assert (after["n_done"], after["seconds"]) == (5, 0)
    next((tmp_path / "runs").glob("lora_all*/record.json")).unlink()
    one = harness("plan", path, "--out", tmp_path / "runs", "--json").json
    assert one["n_done"] == 4
    assert one["seconds"] > 0


@pytest.mark.slow
def test_a_sweep_that_is_stopped_resumes_where_it_was(
    board_file: Callable[[str], Path], plugin: Path, start: Command, tmp_path: Path
) -> None:
    path = board_file('baselines = ["majority"]\n[[row]]\nmethod = "toy_lora"\n')
    text = path.read_text().replace("train.steps = 2", "train.steps = 150").replace("seeds = [0, 1]", "seeds = [0]")
    path.write_text(text)
    first = start("sweep", path, "--out", tmp_path / "runs")
    log: list[Path] = []
    until = time.monotonic() + 120
    while time.monotonic() < until and not (log and log[0].stat().st_size):
        log = list((tmp_path / "runs").glob("toy_lora*/train.jsonl"))
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 143, err
    assert "same command again to resume" in err
    steps = len(log[0].read_text().splitlines())
    assert 0 < steps < 150
    assert "majority, seed 0: done" in err
    before = log[0].read_text()
    second = start("sweep", path, "--out", tmp_path / "runs")
    out, err = second.communicate(timeout=200)
    assert second.returncode == 0, err
    assert "majority" not in err
    assert log[0].read_text().startswith(before)
    assert len(log[0].read_text().splitlines()) == 150
    assert "2 of 2 runs are done" in out
    assert (path.parent / "toys.md").exists()


def test_wrong_devices_are_wrong_use(board_file: Callable[[str], Path], harness: Command, tmp_path: Path) -> None:
    path = board_file('baselines = ["majority"]\n')
    failed = harness("sweep", path, "--devices", "0,0", "--out", tmp_path / "runs")
    assert (failed.status, "give different ids of GPUs" in failed.err) == (2, True), failed.err
