"""A leaderboard's runs, made one after another or side by side: tuning first, what is done left alone.

The first seed of a chosen learning rate takes its training over from the run that tuned it (``harness.taken``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness.errors import HarnessError
from harness.reporting.numbers import duration
from harness.runtime.signals import StopFlag, stop_gracefully
from harness.store.run_directory import State
from harness.sweep.executors import Launch, Process, _log, start
from harness.sweep.jobs import Job, Jobs
from harness.sweep.tuning import diverged, keep, keep_all

_LOOK_SECONDS: Final = 0.2


_LOOK_ELSEWHERE_SECONDS: Final = 5.0


Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a sweep ended. failed: reasons by label. waiting: what needs a run that failed, by label."""

    n_done: int
    n_all: int
    failed: dict[str, str] = field(default_factory=dict)
    waiting: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.failed and not self.waiting

    def lines(self) -> Iterator[str]:
        """For people: the count, then every failure."""
        yield f"{self.n_done} of {self.n_all} runs are done"
        for label, reason in self.failed.items():
            yield f"failed: {label}: {reason}"
        for label in self.waiting:
            yield f"not started, its learning rates are not all tried: {label}"


def sweep(
    jobs: Jobs, board: str, say: Say, *, at_once: int = 1, keep_going: bool = True, launch: Launch = start
) -> Summary:
    """Make every run that is missing. A run that fails stops nothing but what needs it.

    Args:
        board: the leaderboard's name, under which tune.json keeps its grids.
        at_once: processes at a time.
        keep_going: False starts nothing more after the first failure.

    Raises: Interrupted, once the runs at hand have kept their state; the same call goes on. HarnessError where a run is
        no longer the one that was planned.
    """
    with stop_gracefully() as stop:
        work = _Work(jobs, say, launch, stop)
        try:
            work.all(at_once, keep_going)
        finally:  # what a stopped sweep has tuned stands in the leaderboard too
            keep_all(jobs.out, board, [t for c in jobs.tuned() if (t := jobs.tuning(c)) is not None])
            _keep_grids(jobs)
    return work.summary()


def _keep_grids(jobs: Jobs) -> None:
    """Put each grid beside the runs that it decided; a run of several entries keeps the first one's, a row's."""
    kept: set[Path] = set()
    for entry in jobs.entries:
        tuning = None if entry.tuned_as is None else jobs.tuning(entry.tuned_as)
        if tuning is None or tuning.chosen is None:
            continue
        for job in jobs.final_jobs(entry, tuning.chosen):
            if job.run.path not in kept and job.run.state() is State.DONE:
                keep(job.run, tuning)
                kept.add(job.run.path)


@dataclass(frozen=True, kw_only=True)
class _Running:
    job: Job
    process: Process
    since: float


class _Work:
    def __init__(self, jobs: Jobs, say: Say, launch: Launch, stop: StopFlag) -> None:
        self.jobs, self.say, self.launch, self.stop = jobs, say, launch, stop
        self.failed: dict[Path, tuple[str, str]] = {}
        self.running: dict[Path, _Running] = {}
        self.seconds: list[float] = []

    def all(self, at_once: int, keep_going: bool) -> None:
        for label, reason in self.jobs.impossible.items():
            self.say(f"cannot be run: {label}: {reason}")
        said = False
        while True:
            open_jobs, elsewhere = self.open_jobs()
            if self.failed and not keep_going:
                open_jobs, elsewhere = [], []
            for job in open_jobs[: at_once - len(self.running)]:
                process = self.launch(job)
                self.running[job.run.path] = _Running(job=job, process=process, since=time.monotonic())
            if not self.running and not elsewhere:
                return
            if elsewhere and not said:
                self.say(f"another process works on {', '.join(j.label for j in elsewhere)}: waiting for it")
                said = True
            self.until_one_ends()

    def open_jobs(self) -> tuple[list[Job], list[Job]]:
        """Jobs that can be started now, grids first, and jobs that another process is at work on."""
        found: dict[Path, Job] = {}
        elsewhere: list[Job] = []
        for job in self.ready():
            path = job.run.path
            if path in found or path in self.running or path in self.failed or settled(job):
                continue
            if job.run.path.is_dir() and job.run.state() is State.RUNNING:
                elsewhere.append(job)
            else:
                found[path] = job
        return list(found.values()), elsewhere

    def ready(self) -> Iterator[Job]:
        """Jobs whose learning rate is known, done or not."""
        yield from self.jobs.tuning_stage()
        for entry in self.jobs.entries:
            lr = self.jobs.chosen(entry)
            if entry.tuned_as is None or lr is not None:
                yield from self.jobs.final_jobs(entry, lr)

    def until_one_ends(self) -> None:
        """Wait until a run has ended, or for a while where only another process's are awaited."""
        until = time.monotonic() + _LOOK_ELSEWHERE_SECONDS
        while self.running or time.monotonic() < until:
            if self.stop:
                self.terminate()
                self.stop.check()
            ended = [path for path, run in self.running.items() if run.process.poll() is not None]
            for path in ended:
                self.end(self.running.pop(path))
            if ended:
                return
            time.sleep(_LOOK_SECONDS)

    def terminate(self) -> None:
        """Ask every run to keep its state and stop, and wait until it has."""
        for run in self.running.values():
            run.process.terminate()
        for run in self.running.values():
            run.process.wait()

    def end(self, ended: _Running) -> None:
        """Say how a run ended, and how much is left."""
        job, status = ended.job, ended.process.wait()
        seconds = time.monotonic() - ended.since
        if job.run.state() is State.DONE:
            self.seconds.append(seconds)
            how = f"done in {duration(seconds)}"
        elif settled(job):
            how = "diverged: this learning rate is out"
        elif job.run.path.is_dir() and job.run.state() is State.RUNNING:
            how = "another process has begun it"
        elif status == 0:
            self.terminate()
            raise HarnessError(
                f"{job.label} was planned as {job.run.name}, and the command made another run: the data, the model or "
                "the code have changed meanwhile. Give the same command again"
            )
        else:
            self.failed[job.run.path] = (job.label, _reason(job, status))
            how = f"failed: {self.failed[job.run.path][1]}"
        every = self.jobs.all_jobs()
        left = sum(not settled(j) for j in every)
        rest = sum(self.seconds) / len(self.seconds) * left if self.seconds else None
        about = f", about {duration(rest)} of runs" if rest and left else ""
        self.say(f"[{len(every) - left}/{len(every)}] {job.label}: {how}; {left} left{about}")

    def summary(self) -> Summary:
        every = self.jobs.all_jobs()
        failed = {**self.jobs.impossible, **dict(self.failed.values())}
        waiting = []
        for entry in self.jobs.entries:
            tuning = None if entry.tuned_as is None else self.jobs.tuning(entry.tuned_as)
            if entry.tuned_as is not None and tuning is None:
                waiting.append(entry.label)
            elif tuning is not None and tuning.chosen is None:
                failed[entry.label] = "training diverged at every learning rate of its grid: give smaller ones"
        return Summary(
            n_done=sum(settled(j) for j in every),
            n_all=len(every),
            failed=failed,
            waiting=tuple(dict.fromkeys(waiting)),
        )


def settled(job: Job) -> bool:
    """True where nothing is left to do: the run is done, or tuning has shown that its learning rate diverges."""
    return job.run.state() is State.DONE or (job.tuning and diverged(job.run))


def _reason(job: Job, status: int) -> str:
    failure = job.run.failure()
    if failure is not None:
        return f"{failure.error}: {failure.message}"
    log = _log(job)
    text = log.read_text("utf-8", errors="replace").strip() if log.exists() else ""
    return text.splitlines()[-1].removeprefix("error: ") if text else f"ended with status {status}"
