"""Finished runs as published records: small folders below leaderboards/records, which leaderboards include."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Final

from harness.config.suites import suite_of
from harness.errors import HarnessError, StoreError
from harness.leaderboard.plots.digest import FILE as DIGEST
from harness.leaderboard.plots.digest import read_digest
from harness.leaderboard.tables import Leaderboard
from harness.leaderboard.verify import Check, CheckOutcome, verify
from harness.scoring.draws import FILE as DRAWS
from harness.scoring.draws import read_draws, write_draws
from harness.store.files import to_bytes, write_atomic
from harness.store.published_predictions import HASHES, write_hashes, write_predictions
from harness.store.record import RunRecord
from harness.store.run_directory import RunDirectory, open_run
from harness.store.tuning import FILE as TUNING

_LAST: Final = "record.json"  # It is written last, so that a folder with a record is complete.
_FILES: Final = ("spec.json", "scores.json", TUNING)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A run of a leaderboard that cannot be published, and the reasons."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Publication:
    """The folders of the published runs, and the runs that could not be published."""

    folders: tuple[Path, ...]
    refused: tuple[Refused, ...]


def publish_all(board: Leaderboard, records: Path) -> Publication:
    """Verify and publish every run of a leaderboard. Runs that cannot be published do not keep others from it."""
    folders, refused = [], []
    for run, swept in _runs_of(board).items():
        if run.path.resolve().parent == records.resolve():
            continue
        try:
            folders.append(publish(run.path, verify(run.path), records, board.protocol, swept=swept))
        except HarnessError as error:
            refused.append(Refused(name=run.name, reason=str(error)))
    return Publication(folders=tuple(folders), refused=tuple(refused))


def _runs_of(board: Leaderboard) -> dict[RunDirectory, bool]:
    """Every run of a leaderboard, and whether it is used only as a point of a sweep."""
    swept: dict[RunDirectory, bool] = {}
    swept |= {run.directory: False for row in board.elsewhere for run in row.group.runs}
    for table in board.tables:
        groups = [row.group for row in table.rows] + ([] if table.seed_noise is None else [table.seed_noise.null])
        swept |= {run.directory: False for group in groups for run in group.runs}
        for sweep in table.sweeps:
            for run in (run for point in sweep.points for run in point.group.runs):
                swept.setdefault(run.directory, True)
    return swept


def publish(
    path: Path, checks: list[Check], records: Path, protocol: str | None = None, *, swept: bool = False
) -> Path:
    """Copy what leaderboards and ``verify`` need to ``records/<the run's name>``: scores and predictions, no weights.

    Args:
        checks: the result of ``verify``.
        protocol: the protocol whose bootstrap draws are copied (they are most of a record's size); default all.
        swept: the run is a point of a sweep, which may compare limits on the number of training examples.
    Raises: HarnessError naming every reason against it; StoreError if another record has the same name.
    """
    run = open_run(path)
    record = run.record()
    assert record is not None
    reasons = [
        *objections(record, swept=swept),
        *_without_predictions(run),
        *(str(c) for c in checks if c.outcome is CheckOutcome.DIFFERS),
    ]
    if reasons:
        raise HarnessError(f"{run.name} cannot be published: {'; '.join(reasons)}")
    folder = records / run.path.resolve().name
    public = to_bytes(_without_folders(record))
    if (folder / _LAST).exists():
        if (folder / _LAST).read_bytes() == public:
            return folder
        raise StoreError(
            f"{folder} is published already, from another run of the same spec. To replace it, delete the folder first."
        )
    adapters = sorted(p.relative_to(run.path) for p in run.path.glob("adapter/**/adapter.json"))
    folder.mkdir(parents=True, exist_ok=True)
    RunDirectory(folder).write(DIGEST, read_digest(run))
    _copy_draws(run, RunDirectory(folder), protocol)
    _copy_predictions(run, folder, record)
    for name in [*map(Path, _FILES), *adapters]:
        if (run.path / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, (run.path / name).read_bytes())
    write_atomic(folder / _LAST, public)
    return folder


def _without_folders(record: RunRecord) -> RunRecord:
    """The record with the last part of each absolute path of its command: folders of a machine say who runs it."""
    command = without_folders(record.provenance.command)
    return record.model_copy(update={"provenance": record.provenance.model_copy(update={"command": command})})


def without_folders(command: Sequence[str]) -> list[str]:
    """The arguments of a command; of each absolute path only the last part."""
    return [_last_part(argument) for argument in command]


def _last_part(argument: str) -> str:
    flag, equals, value = argument.rpartition("=")
    return f"{flag}{equals}{PurePath(value).name}" if PurePath(value).is_absolute() else argument


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
                of_task,
                headlines={p: v for p, v in of_task.headlines.items() if p == protocol},
                correct={p: v for p, v in of_task.correct.items() if p == protocol},
            )
            for task, of_task in draws.items()
        },
    )


def _without_predictions(run: RunDirectory) -> Iterator[str]:
    if not (run.has_hashes or run.has_predictions(_evaluated(run))):
        yield "its predictions are missing, so that its scores cannot be recomputed: run it again"


def _evaluated(run: RunDirectory) -> list[str]:
    """The tasks that a run has evaluated examples of."""
    scores = run.scores()
    tables = () if scores is None else scores.root.values()
    return list(dict.fromkeys(task for table in tables for task, score in table.tasks.items() if score.n))


def _copy_predictions(run: RunDirectory, folder: Path, record: RunRecord) -> None:
    """Store the predictions, or their hashes if the suite does not allow its predictions to be published."""
    if run.has_hashes:
        write_atomic(folder / HASHES, (run.path / HASHES).read_bytes())
        return
    suite = suite_of(record.spec.suite)
    write = write_predictions if record.sample or suite.publish_predictions else write_hashes
    write(folder, run.predictions(_evaluated(run)))


def objections(record: RunRecord, *, swept: bool = False) -> Iterator[str]:
    """The reasons why a run is not reproducible, or not a complete result."""
    if record.provenance.commit is None:
        yield "it was not started from a git checkout, so the version of its code is unknown: run it from a clone"
    elif record.provenance.dirty is not False:
        yield "the code had uncommitted changes: commit them and run again"
    for section in ("eval",) if swept else ("train", "eval"):
        if (limit := getattr(record.spec, section).per_task) is not None:
            yield f"it is limited: {section}.per_task = {limit}; run without the limit"
    if record.generation is not None and record.generation.halved:
        yield f"{record.generation.halved} batches were halved for lack of memory: use a smaller eval.batch_tokens"
