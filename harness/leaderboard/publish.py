"""Finished runs as published records: small folders under leaderboards/records that leaderboards read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from harness.errors import HarnessError, StoreError
from harness.leaderboard.plots.digest import FILE as DIGEST
from harness.leaderboard.plots.digest import read_digest
from harness.leaderboard.tables import Leaderboard
from harness.leaderboard.verify import Check, Outcome, verify
from harness.scoring.draws import FILE as DRAWS
from harness.scoring.draws import read_draws, write_draws
from harness.store.files import write_atomic
from harness.store.record import RunRecord
from harness.store.run_directory import RunDirectory, open_run
from harness.sweep.tuning import FILE as TUNING

_LAST: Final = "record.json"  # a folder with a record is whole
_FILES: Final = ("spec.json", "scores.json", TUNING)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A run of a leaderboard that cannot be published, and why."""

    name: str
    reason: str


def publish_all(board: Leaderboard, records: Path, say: Callable[[str], None]) -> list[Refused]:
    """Verify and publish every run that a leaderboard shows; the others of it are published where one is refused."""
    refused = []
    for run, swept in _shown(board).items():
        if run.path.resolve().parent == records.resolve():
            continue
        try:
            say(f"published: {publish(run.path, verify(run.path), records, board.protocol, swept=swept)}")
        except HarnessError as error:
            refused.append(Refused(name=run.name, reason=str(error)))
    return refused


def _shown(board: Leaderboard) -> dict[RunDirectory, bool]:
    """Every run behind a leaderboard, and whether it is a point of a sweep and nothing else."""
    found: dict[RunDirectory, bool] = {}
    found |= {run.directory: False for row in board.elsewhere for run in row.group.runs}
    for table in board.tables:
        groups = [row.group for row in table.rows] + ([] if table.noise is None else [table.noise.null])
        found |= {run.directory: False for group in groups for run in group.runs}
        for sweep in table.sweeps:
            for run in (run for point in sweep.points for run in point.group.runs):
                found.setdefault(run.directory, True)
    return found


def publish(
    path: Path, checks: list[Check], records: Path, protocol: str | None = None, *, swept: bool = False
) -> Path:
    """Copy what leaderboards need of a run to ``records/<its name>``; weights, texts and inputs stay where they are.

    Args:
        checks: what ``verify`` found.
        protocol: whose bootstrap draws are kept (they are most of a record's size); default all.
        swept: it is a point of a sweep, where a limit on the training rows is what is compared.
    Raises: HarnessError naming every reason against it; StoreError where another record is there already.
    """
    run = open_run(path)
    record = run.record()
    assert record is not None
    reasons = [*objections(record, swept=swept), *(str(c) for c in checks if c.outcome is Outcome.DIFFERS)]
    if reasons:
        raise HarnessError(f"{run.name} cannot be published: {'; '.join(reasons)}")
    folder = records / run.path.resolve().name
    if (folder / _LAST).exists():
        if (folder / _LAST).read_bytes() == (run.path / _LAST).read_bytes():
            return folder
        raise StoreError(f"{folder} is published already, from another run of the same spec: remove it to replace it")
    adapters = sorted(p.relative_to(run.path) for p in run.path.glob("adapter/**/adapter.json"))
    folder.mkdir(parents=True, exist_ok=True)
    RunDirectory(folder).write(DIGEST, read_digest(run))
    _copy_draws(run, RunDirectory(folder), protocol)
    for name in [*map(Path, _FILES), *adapters, Path(_LAST)]:
        if (run.path / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, (run.path / name).read_bytes())
    return folder


def _copy_draws(run: RunDirectory, folder: RunDirectory, protocol: str | None) -> None:
    draws = read_draws(run)
    if draws is None or protocol is None:
        if (run.path / DRAWS).exists():
            write_atomic(folder.path / DRAWS, (run.path / DRAWS).read_bytes())
        return
    write_draws(
        folder,
        {
            task: replace(
                kept,
                headlines={p: v for p, v in kept.headlines.items() if p == protocol},
                right={p: v for p, v in kept.right.items() if p == protocol},
            )
            for task, kept in draws.items()
        },
    )


def objections(record: RunRecord, *, swept: bool = False) -> Iterator[str]:
    """Why nobody else could make this run again, or why it is no full result."""
    if record.provenance.commit is None:
        yield "it was not made in a git checkout, so nobody knows with which code"
    elif record.provenance.dirty is not False:
        yield "the code had uncommitted changes: commit them and run again"
    for section in ("eval",) if swept else ("train", "eval"):
        if (limit := getattr(record.spec, section).per_task) is not None:
            yield f"it is limited: {section}.per_task = {limit}"
    if record.generation is not None and record.generation.halved:
        yield f"{record.generation.halved} batches were halved for lack of memory: set a smaller eval.batch_tokens"
