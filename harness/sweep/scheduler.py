"""Start the missing runs of a leaderboard's file, several at a time, learning-rate searches first.

What is done is read from disk, so several machines that share a folder can sweep the same file: each starts runs that
no other one works on. The first seed of a chosen learning rate reuses the training of the search (``take_training``).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness.errors import HarnessError
from harness.reporting.numbers import duration
from harness.runtime.signals import StopFlag, stop_gracefully
from harness.store.lock import read_owner
from harness.store.run_directory import State
from harness.store.tuning import keep, keep_all
from harness.sweep.cost import LongestFirst
from harness.sweep.devices import measured_peak
from harness.sweep.executors import LOST, Executor, RunProcess
from harness.sweep.jobs import Job, Jobs
from harness.sweep.tuning import diverged

LOG: Final = logging.getLogger(__name__)

# A run that ends with its worker this often is a failure: it probably uses more memory than the worker has.
_MOST_LOSSES: Final = 3


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How a sweep proceeds.

    n_parallel: number of runs at a time; None for as many as the executor has room for.
    keep_going: start further runs after one has failed.
    poll_seconds: interval at which running processes are checked. recheck_seconds: interval at which the disk is
        checked while the only runs left belong to other processes.
    """

    n_parallel: int | None = 1
    keep_going: bool = True
    poll_seconds: float = 0.2
    recheck_seconds: float = 5.0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of a sweep. failed: reasons by label. waiting: labels of entries whose learning rate is not chosen."""

    n_done: int
    n_all: int
    failed: dict[str, str] = field(default_factory=dict)
    waiting: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if nothing has failed and nothing is left."""
        return not self.failed and not self.waiting

    def lines(self) -> Iterator[str]:
        """The count, then every failure, for people."""
        yield f"{self.n_done} of {self.n_all} runs are done"
        for label, reason in self.failed.items():
            yield f"failed: {label}: {reason}"
        for label in self.waiting:
            yield f"not started, because its learning-rate search has not finished: {label}"


def sweep(jobs: Jobs, board: str, executor: Executor, options: SweepOptions | None = None) -> Summary:
    """Start every missing run and wait for it. A run that fails stops only the runs that need its result.

    Args:
        board: name of the leaderboard; tune.json stores its learning-rate searches under this name.

    Raises: Interrupted, once the running runs have saved their state (the same call resumes); HarnessError if a run is
        not the run that was planned.
    """
    with stop_gracefully() as stop:
        scheduler = Scheduler(jobs, executor, options or SweepOptions(), stop)
        try:
            scheduler.run()
        finally:  # the leaderboard shows the finished searches of an interrupted sweep too
            keep_all(jobs.out, board, [t for c in jobs.tuned() if (t := jobs.tuning(c)) is not None])
            _keep_grids(jobs)
    return scheduler.summary()


def settled(job: Job) -> bool:
    """True if nothing is left to do: the run is done, or the search has shown that its learning rate diverges."""
    return job.run.state() is State.DONE or (job.tuning and diverged(job.run))


@dataclass(frozen=True, kw_only=True)
class RunningJob:
    """A job that was started. since: the time of its start, by ``time.monotonic``."""

    job: Job
    process: RunProcess
    since: float


@dataclass(frozen=True, kw_only=True)
class OpenJobs:
    """Jobs that are left: those that can be started now, and those that another process works on."""

    ready: tuple[Job, ...] = ()
    elsewhere: tuple[Job, ...] = ()


class Scheduler:
    """The loop of a sweep: start runs, wait until one ends, report it, and start the next ones."""

    def __init__(self, jobs: Jobs, executor: Executor, options: SweepOptions, stop: StopFlag) -> None:
        self.jobs, self.executor, self.options, self.stop = jobs, executor, options, stop
        self.failed: dict[Path, str] = {}
        self.labels: dict[Path, str] = {}
        self.announced: set[Path] = set()
        self.running: dict[Path, RunningJob] = {}
        self.seconds: list[float] = []
        self.order = LongestFirst(jobs)
        self.peak: int | None = None
        self.losses: Counter[Path] = Counter()

    def run(self) -> None:
        """Start every missing run and wait until all are done. Raises: see ``sweep``."""
        for label, reason in self.jobs.impossible.items():
            LOG.warning("not possible: %s: %s", label, reason)
        for job in self.known_jobs():
            self.measure(job)
        while True:
            left = OpenJobs() if self.failed and not self.options.keep_going else self.open_jobs()
            for job in left.ready[: max(0, self.n_parallel() - len(self.running))]:
                process = self.executor.start(job)
                self.running[job.run.path] = RunningJob(job=job, process=process, since=time.monotonic())
            if not self.running and not left.elsewhere:
                return
            self.announce(left.elsewhere)
            self.wait_for_one()

    def n_parallel(self) -> int:
        """How many runs may run at a time now."""
        return self.executor.capacity(self.options.n_parallel, self.peak)

    def measure(self, job: Job) -> None:
        """Keep the largest peak of GPU memory of all finished runs."""
        if (peak := measured_peak(job.run)) is not None:
            self.peak = max(peak, self.peak or 0)

    def announce(self, elsewhere: Sequence[Job]) -> None:
        """Log once for each run that another process works on."""
        for job in elsewhere:
            if job.run.path not in self.announced:
                self.announced.add(job.run.path)
                owner = read_owner(job.run.path) or "another process"
                LOG.info("waiting for %s: %s is in use by %s", job.label, job.run.path, owner)

    def open_jobs(self) -> OpenJobs:
        """The jobs that are left, learning-rate searches first, and among them the longest."""
        ready: dict[Path, Job] = {}
        elsewhere: dict[Path, Job] = {}
        for job in self.known_jobs():
            path = job.run.path
            if path in ready or path in self.running or path in self.failed or settled(job):
                continue
            (elsewhere if job.run.state() is State.RUNNING else ready)[path] = job
        return OpenJobs(ready=tuple(self.order.sort(ready.values())), elsewhere=tuple(elsewhere.values()))

    def known_jobs(self) -> Iterator[Job]:
        """Jobs whose learning rate is known, done or not."""
        yield from self.jobs.tuning_stage()
        for entry in self.jobs.entries:
            chosen = self.jobs.chosen(entry)
            if entry.tuned_as is None or chosen is not None:
                yield from self.jobs.final_jobs(entry, chosen)

    def wait_for_one(self) -> None:
        """Wait until a run has ended; if only other processes' runs are left, wait for ``recheck_seconds``."""
        until = time.monotonic() + self.options.recheck_seconds
        while self.running or time.monotonic() < until:
            if self.stop:
                self.terminate()
                self.stop.check()
            ended = [path for path, run in self.running.items() if run.process.poll() is not None]
            for path in ended:
                self.report(self.running.pop(path))
            if ended:
                return
            time.sleep(self.options.poll_seconds)

    def terminate(self) -> None:
        """Signal every run to save its state and stop, and wait until all have stopped."""
        for run in self.running.values():
            run.process.terminate()
        for run in self.running.values():
            run.process.wait()

    def report(self, ended: RunningJob) -> None:
        """Log how a run ended and how much is left."""
        job, status = ended.job, ended.process.wait()
        seconds = time.monotonic() - ended.since
        level = logging.INFO
        if job.run.state() is State.DONE:
            self.seconds.append(seconds)
            self.measure(job)
            how = f"done in {duration(seconds)}"
        elif settled(job):
            how = "diverged, so this learning rate is excluded"
        elif status == LOST and not self.lost_too_often(job):
            level, how = logging.WARNING, "its worker was lost; it is started again and resumes"
        elif job.run.state() is State.RUNNING:
            how = "another process works on it"
        elif status == 0:
            self.terminate()
            raise HarnessError(
                f"{job.label} was planned as {job.run.name}, but the command produced another run: the data, the model "
                "or the code have changed since the sweep started. Run the same command again"
            )
        else:
            level = logging.WARNING
            self.failed[job.run.path], self.labels[job.run.path] = _reason(job, status), job.label
            how = f"failed: {self.failed[job.run.path]}"
        LOG.log(level, "%s %s: %s%s", self._count(), job.label, how, self._left())

    def lost_too_often(self, job: Job) -> bool:
        """Count one more loss of the worker of a run."""
        self.losses[job.run.path] += 1
        return self.losses[job.run.path] >= _MOST_LOSSES

    def summary(self) -> Summary:
        """The state of every job after the sweep."""
        every = self.jobs.all_jobs()
        failed = {**self.jobs.impossible, **{self.labels[path]: reason for path, reason in self.failed.items()}}
        waiting = []
        for entry in self.jobs.entries:
            tuning = None if entry.tuned_as is None else self.jobs.tuning(entry.tuned_as)
            if entry.tuned_as is not None and tuning is None:
                waiting.append(entry.label)
            elif tuning is not None and tuning.chosen is None:
                failed[entry.label] = "training diverged at every learning rate that was tried: give smaller ones"
        return Summary(
            n_done=sum(settled(j) for j in every),
            n_all=len(every),
            failed=failed,
            waiting=tuple(dict.fromkeys(waiting)),
        )

    def _count(self) -> str:
        every = self.jobs.all_jobs()
        return f"[{sum(settled(job) for job in every)}/{len(every)}]"

    def _left(self) -> str:
        left = sum(not settled(job) for job in self.jobs.all_jobs())
        if not left or not self.seconds:
            return f"; {left} left"
        return f"; {left} left, about {duration(sum(self.seconds) / len(self.seconds) * left)} of run time"


def _keep_grids(jobs: Jobs) -> None:
    """Store each search with the runs that it decided; for a run of several entries the first entry's, a row's."""
    kept: set[Path] = set()
    for entry in jobs.entries:
        tuning = None if entry.tuned_as is None else jobs.tuning(entry.tuned_as)
        if tuning is None or tuning.chosen is None:
            continue
        for job in jobs.final_jobs(entry, jobs.chosen(entry)):
            if job.run.path not in kept and job.run.state() is State.DONE:
                keep(job.run, tuning)
                kept.add(job.run.path)


def _reason(job: Job, status: int) -> str:
    if status == LOST:
        return f"its worker was lost {_MOST_LOSSES} times, as one that runs out of memory is"
    failure = job.run.failure()
    if failure is not None:
        return f"{failure.error}: {failure.message}"
    text = job.log_file.read_text("utf-8", errors="replace").strip() if job.log_file.exists() else ""
    return text.splitlines()[-1].removeprefix("error: ") if text else f"ended with exit status {status}"
