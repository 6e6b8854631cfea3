"""Finished runs as published records: small folders under leaderboards/records that leaderboards read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from harness.draws import FILE as DRAWS
from harness.errors import HarnessError, StoreError
from harness.record import RunRecord
from harness.store import open_run, write_atomic
from harness.tuning import FILE as TUNING
from harness.verify import Check, Outcome

_LAST: Final = "record.json"  # a folder with a record is whole
_FILES: Final = ("spec.json", "scores.json", DRAWS, TUNING)


def publish(path: Path, checks: list[Check], records: Path) -> Path:
    """Copy what leaderboards need of a run to ``records/<its name>``; weights, texts and inputs stay where they are.

    Args: checks: what ``verify`` found.
    Raises: HarnessError naming every reason against it; StoreError where another record is there already.
    """
    run = open_run(path)
    record = run.record()
    assert record is not None
    reasons = [*objections(record), *(str(c) for c in checks if c.outcome is Outcome.DIFFERS)]
    if reasons:
        raise HarnessError(f"{run.name} cannot be published: {'; '.join(reasons)}")
    folder = records / run.path.resolve().name
    if (folder / _LAST).exists():
        if (folder / _LAST).read_bytes() == (run.path / _LAST).read_bytes():
            return folder
        raise StoreError(f"{folder} is published already, from another run of the same spec: remove it to replace it")
    adapters = sorted(p.relative_to(run.path) for p in run.path.glob("adapter/**/adapter.json"))
    for name in [*map(Path, _FILES), *adapters, Path(_LAST)]:
        if (run.path / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, (run.path / name).read_bytes())
    return folder


def objections(record: RunRecord) -> Iterator[str]:
    """Why nobody else could make this run again, or why it is no full result."""
    if record.provenance.commit is None:
        yield "it was not made in a git checkout, so nobody knows with which code"
    elif record.provenance.dirty is not False:
        yield "the code had uncommitted changes: commit them and run again"
    for section in ("train", "eval"):
        if (limit := getattr(record.spec, section).per_task) is not None:
            yield f"it is limited: {section}.per_task = {limit}"
    if record.generation is not None and record.generation.halved:
        yield f"{record.generation.halved} batches were halved for lack of memory: set a smaller eval.batch_tokens"
