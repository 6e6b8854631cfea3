"""Something that a test does after each training step of the runs that it starts in its own process."""

from __future__ import annotations

import functools
from collections.abc import Collection

import pytest

import harness.pipeline.execute
from harness.training.stage import StepDone, StepHook


class Crash(BaseException):
    """An end of the process, as far as a test can make one: no error handling of the project catches it."""


def after_each_step(monkeypatch: pytest.MonkeyPatch, hook: StepHook) -> None:
    """Give every run of this process the hook."""
    execute = functools.partial(harness.pipeline.execute.execute, on_step=hook)
    monkeypatch.setattr(harness.pipeline.execute, "execute", execute)


def crash_after(monkeypatch: pytest.MonkeyPatch, steps: Collection[int]) -> None:
    """Raise ``Crash`` after these of the steps from now on, counted from 1 over all stages."""
    made: list[StepDone] = []

    def crash(done: StepDone) -> None:
        made.append(done)
        if len(made) in steps:
            raise Crash

    after_each_step(monkeypatch, crash)
