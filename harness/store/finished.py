"""Finished runs: a run directory whose record.json exists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.errors import StoreError
from harness.store.record import RunRecord
from harness.store.run_directory import RunDirectory, open_run


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run directory with its record."""

    run: RunDirectory
    record: RunRecord


def open_finished(path: Path) -> FinishedRun:
    """Open a finished run. Raises: StoreError for a folder that is not a run, or a run that is not finished."""
    run = open_run(path)
    record = run.record()
    if record is None:
        raise StoreError(
            f"the run {run.path} is not finished (its state: {run.state().value}). Run its `harness run` command "
            "again to finish it"
        )
    return FinishedRun(run=run, record=record)
