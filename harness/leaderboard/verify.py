"""Whether a run, or a published record, is what it says: hashes, data, scores from predictions, draws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from harness.config.clusters import clusters_of
from harness.config.spec import directory_name, run_id
from harness.errors import DataError, HarnessError, StoreError
from harness.method import Trait
from harness.pipeline.reopen import data_at, request_of_run
from harness.pipeline.rescore import scores_of
from harness.registry import method_class
from harness.scoring import statistics as stats
from harness.scoring.draws import read_draws
from harness.store.adapter import read_meta, read_weights
from harness.store.finished import open_finished
from harness.store.record import ProtocolScores, RunRecord, Scores
from harness.store.run_directory import RunDirectory

_DRAW = 2.0 / 65_535  # draws are kept in two bytes, so what follows from them is this exact


class Outcome(StrEnum):
    """What a check found."""

    SAME = "same"
    DIFFERS = "differs"
    UNKNOWN = "not checked"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at. detail: exactly what differs, or why it could not be checked."""

    what: str
    outcome: Outcome
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.outcome}" + (f": {self.detail}" if self.detail else "")


def verify(path: Path, data: str | None = None) -> list[Check]:
    """Look at everything that can be looked at.

    Args:
        path: a run's directory, or a folder of ``leaderboards/records``.
        data: where the data are now, when they have moved.

    Raises: StoreError where the run is not finished.
    """
    finished = open_finished(path)
    run, record = finished.run, finished.record
    return [*_identity(run, record), *_adapters(run, record), *_scores(run, record, data), *_draws(run)]


def _identity(run: RunDirectory, record: RunRecord) -> Iterator[Check]:
    made = run_id(record.spec)
    yield _same("run_id", made, record.run_id, "of the record's spec")
    spec = run.spec()
    if spec is not None:
        yield _same("spec.json", run_id(spec), made, "by its run_id")
    yield _same("name", run.path.resolve().name, directory_name(record.spec), "of the directory")
    now = method_class(record.spec.method.name).version
    if now != record.spec.method.version:
        detail = f"installed is version {now} of {record.spec.method.name}, the run used {record.spec.method.version}"
        yield Check(what="method", outcome=Outcome.UNKNOWN, detail=detail)


def _adapters(run: RunDirectory, record: RunRecord) -> Iterator[Check]:
    if Trait.TRAINS not in method_class(record.spec.method.name).traits:
        return
    for cluster in clusters_of(record.spec):
        folder = run.of(cluster.name).adapter
        what = "adapter" + (f" {cluster.name}" if cluster.name else "")
        if not (folder / "adapter.json").exists():
            yield Check(what=what, outcome=Outcome.UNKNOWN, detail="it is not here")
            continue
        try:
            meta = read_meta(folder)
            yield _same(f"{what}'s run", str(meta.get("run_id")), record.run_id, "by its adapter.json")
            if (folder / "adapter.safetensors").exists():
                read_weights(folder)
                yield Check(what=f"{what}'s weights", outcome=Outcome.SAME, detail=f"sha256 {meta['sha256'][:12]}")
            else:
                yield Check(what=f"{what}'s weights", outcome=Outcome.UNKNOWN, detail=f"sha256 {meta['sha256']}")
        except (StoreError, KeyError) as error:
            yield Check(what=what, outcome=Outcome.DIFFERS, detail=str(error))


def _scores(run: RunDirectory, record: RunRecord, data: str | None) -> Iterator[Check]:
    """The data's hashes, and the scores that the predictions have now."""
    given = data
    if given is None and (run.path / "inputs.json").exists():
        given = request_of_run(run).options.get("data")
    if given is None and not record.sample:
        yield Check(what="data", outcome=Outcome.UNKNOWN, detail="give --data")
        return
    try:
        found = data_at(run, given)
    except DataError as error:
        yield Check(what="data", outcome=Outcome.DIFFERS, detail=str(error))
        return
    spec, suite, rows = found.spec, found.suite, found.rows
    yield Check(what="data", outcome=Outcome.SAME, detail=", ".join(spec.data.fingerprints))
    old = [t for t, v in spec.suite.tasks.items() if t not in suite.tasks or suite.tasks[t].version != v]
    if old or suite.version != spec.suite.version:
        names = ", ".join(old) or "the reader"
        detail = f"{names} of another version than the run's; what differs below may come from that"
        yield Check(what="suite", outcome=Outcome.UNKNOWN, detail=detail)
    if not all(run.prediction_file(t).exists() for t in rows.by_task):
        yield Check(what="scores", outcome=Outcome.UNKNOWN, detail="the predictions are not here")
        return
    try:
        again = scores_of(run, found, record.n_train).scores
    except (DataError, StoreError) as error:
        yield Check(what="predictions", outcome=Outcome.DIFFERS, detail=str(error))
        return
    kept = run.scores()
    if kept is None:
        yield Check(what="scores", outcome=Outcome.DIFFERS, detail="there is no scores.json")
        return
    differences = list(_different(kept, again))
    yield from (Check(what="scores", outcome=Outcome.DIFFERS, detail=detail) for detail in differences)
    if not differences:
        n = sum(t.n for t in next(iter(kept.root.values())).tasks.values())
        yield Check(what="scores", outcome=Outcome.SAME, detail=f"recomputed from {n:,} predictions")


def _different(kept: Scores, again: Scores) -> Iterator[str]:
    for protocol in dict.fromkeys([*kept.root, *again.root]):
        one, two = kept.root.get(protocol), again.root.get(protocol)
        if one is None or two is None:
            yield f"protocol {protocol} is {'new' if one is None else 'gone'}"
            continue
        if not _near(one.mean, two.mean, 1e-12):
            yield f"{protocol}: mean {one.mean}, recomputed {two.mean}"
        for task in dict.fromkeys([*one.tasks, *two.tasks]):
            yield from _task_differs(f"{protocol}, {task}", one, two, task)


def _task_differs(where: str, one: ProtocolScores, two: ProtocolScores, task: str) -> Iterator[str]:
    a, b = one.tasks.get(task), two.tasks.get(task)
    if a is None or b is None:
        yield f"{where} is {'new' if a is None else 'gone'}"
        return
    left, right = a.model_dump(exclude={"metrics"}), b.model_dump(exclude={"metrics"})
    for metric in dict.fromkeys([*a.metrics, *b.metrics]):
        left[metric], right[metric] = a.metrics.get(metric), b.metrics.get(metric)
    for name, value in left.items():
        near = _near(value, right[name], 1e-12) if isinstance(value, float) else value == right[name]
        if not near:
            yield f"{where}: {name} {value}, recomputed {right[name]}"


def _draws(run: RunDirectory) -> Iterator[Check]:
    """The bootstrap's draws say the same as the scores beside them."""
    scores = run.scores()
    try:
        draws = read_draws(run)
    except HarnessError as error:
        yield Check(what="draws", outcome=Outcome.DIFFERS, detail=str(error))
        return
    if draws is None or scores is None:
        yield Check(what="draws", outcome=Outcome.UNKNOWN, detail="there are none")
        return
    protocols = {protocol for of_task in draws.values() for protocol in of_task.headlines}
    if left_out := [p for p in scores.root if p not in protocols]:
        detail = f"none are kept of {', '.join(left_out)}"
        yield Check(what="draws", outcome=Outcome.UNKNOWN, detail=detail)
    for protocol, table in ((p, t) for p, t in scores.root.items() if p in protocols):
        for task, kept in table.tasks.items():
            found = draws[task].headlines.get(protocol) if task in draws else None
            if found is None:
                if kept.value is not None:
                    detail = f"{protocol}, {task}: scored, and no draws are kept"
                    yield Check(what="draws", outcome=Outcome.DIFFERS, detail=detail)
                continue
            ends = stats.interval(found)
            same = all(_near(a, b, _DRAW) for a, b in zip(kept.ci95 or (), ends, strict=False))
            if not (_near(kept.value, found.value, 1e-12) and same):
                said = f"{kept.value} {kept.ci95} in scores.json, {found.value} {ends} by the draws"
                detail = f"{protocol}, {task}: {said}"
                yield Check(what="draws", outcome=Outcome.DIFFERS, detail=detail)
                return
    yield Check(what="draws", outcome=Outcome.SAME)


def _same(what: str, one: str, two: str, how: str) -> Check:
    if one == two:
        return Check(what=what, outcome=Outcome.SAME)
    return Check(what=what, outcome=Outcome.DIFFERS, detail=f"{one} {how}, {two} in the record")


def _near(a: float | None, b: float | None, by: float) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=0.0, abs_tol=by)
