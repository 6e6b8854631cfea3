"""Verification of a run or a published record: hashes, data, scores recomputed from predictions, draws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from harness.config.clusters import clusters_of
from harness.config.spec import directory_name, run_id
from harness.errors import DataError, HarnessError, StoreError
from harness.pipeline.reopen import data_at, request_of_run
from harness.pipeline.rescore import scores_of
from harness.registry import method_class
from harness.reporting.numbers import number
from harness.scoring import statistics as stats
from harness.scoring.draws import read_draws
from harness.store.adapter import read_meta, read_weights
from harness.store.finished import open_finished
from harness.store.record import ProtocolScores, RunRecord, Scores, TaskScore
from harness.store.run_directory import RunDirectory

_DRAW = 2.0 / 65_535  # Draws are stored in two bytes, so intervals computed from them are exact to this value.

_HASHES_ONLY = "the record holds hashes only, since the suite does not allow its predictions to be published"


class CheckOutcome(StrEnum):
    """The outcome of a check."""

    SAME = "same"
    DIFFERS = "differs"
    UNKNOWN = "not checked"


@dataclass(frozen=True, kw_only=True)
class Check:
    """The check of one property. detail: the values that differ, or the reason why it was not checked."""

    what: str
    outcome: CheckOutcome
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.outcome}" + (f": {self.detail}" if self.detail else "")


def verify(path: Path, data: str | None = None) -> list[Check]:
    """Check every property whose files exist.

    Args:
        path: a run's directory, or a folder of ``leaderboards/records``.
        data: the current location of the data, if they have moved.

    Raises: StoreError if the run is not finished.
    """
    finished = open_finished(path)
    run, record = finished.run, finished.record
    return [*_identity(run, record), *_adapters(run, record), *_scores(run, record, data), *_draws(run)]


def _identity(run: RunDirectory, record: RunRecord) -> Iterator[Check]:
    expected = run_id(record.spec)
    yield _same("run_id", expected, record.run_id, "computed from the record's spec")
    spec = run.spec()
    if spec is not None:
        yield _same("spec.json", run_id(spec), expected, "computed from spec.json")
    yield _same("name", run.path.resolve().name, directory_name(record.spec), "the directory's name")
    now = method_class(record.spec.method.name).version
    if now != record.spec.method.version:
        detail = f"version {now} of {record.spec.method.name} is installed, the run used {record.spec.method.version}"
        yield Check(what="method", outcome=CheckOutcome.UNKNOWN, detail=detail)


def _adapters(run: RunDirectory, record: RunRecord) -> Iterator[Check]:
    if not method_class(record.spec.method.name).trains:
        return
    for cluster in clusters_of(record.spec):
        folder = run.of(cluster.name).adapter
        what = "adapter" + (f" {cluster.name}" if cluster.name else "")
        if not (folder / "adapter.json").exists():
            yield Check(what=what, outcome=CheckOutcome.UNKNOWN, detail="it is not stored here")
            continue
        try:
            meta = read_meta(folder)
            yield _same(f"{what}'s run", str(meta.get("run_id")), record.run_id, "in adapter.json")
            if (folder / "adapter.safetensors").exists():
                read_weights(folder)
                yield Check(what=f"{what}'s weights", outcome=CheckOutcome.SAME, detail=f"sha256 {meta['sha256'][:12]}")
            else:
                yield Check(what=f"{what}'s weights", outcome=CheckOutcome.UNKNOWN, detail=f"sha256 {meta['sha256']}")
        except (StoreError, KeyError) as error:
            yield Check(what=what, outcome=CheckOutcome.DIFFERS, detail=str(error))


def _scores(run: RunDirectory, record: RunRecord, data: str | None) -> Iterator[Check]:
    """The hashes of the data, and the scores recomputed from the predictions."""
    given = data
    if given is None and run.inputs.exists():
        given = request_of_run(run).options.get("data")
    if given is None and not record.spec.data.sample:
        yield Check(what="data", outcome=CheckOutcome.UNKNOWN, detail="the record does not include them; give --data")
        if run.has_hashes:
            yield Check(what="scores", outcome=CheckOutcome.UNKNOWN, detail=_HASHES_ONLY)
        return
    try:
        found = data_at(run, given)
    except DataError as error:
        yield Check(what="data", outcome=CheckOutcome.DIFFERS, detail=str(error))
        return
    spec, suite, rows = found.spec, found.suite, found.evaluated
    yield Check(what="data", outcome=CheckOutcome.SAME, detail=", ".join(spec.data.fingerprints))
    old = [t for t, v in spec.suite.tasks.items() if t not in suite.tasks or suite.tasks[t].version != v]
    if old or suite.version != spec.suite.version:
        names = ", ".join(old) or "the suite"
        detail = f"the installed version of {names} is not the run's, which may explain differences in the scores"
        yield Check(what="suite", outcome=CheckOutcome.UNKNOWN, detail=detail)
    if run.has_hashes or not run.has_predictions(rows.by_task):
        detail = _HASHES_ONLY if run.has_hashes else "the predictions are not stored here"
        yield Check(what="scores", outcome=CheckOutcome.UNKNOWN, detail=detail)
        return
    try:
        recomputed = scores_of(run, found, record.n_train).scores
    except (DataError, StoreError) as error:
        yield Check(what="predictions", outcome=CheckOutcome.DIFFERS, detail=str(error))
        return
    stored = run.scores()
    if stored is None:
        yield Check(what="scores", outcome=CheckOutcome.DIFFERS, detail="scores.json is missing")
        return
    differences = list(_different(stored, recomputed))
    yield from (Check(what="scores", outcome=CheckOutcome.DIFFERS, detail=detail) for detail in differences)
    if not differences:
        n = sum(t.n for t in next(iter(stored.root.values())).tasks.values())
        yield Check(what="scores", outcome=CheckOutcome.SAME, detail=f"recomputed from {number(n)} predictions")


def _different(stored: Scores, recomputed: Scores) -> Iterator[str]:
    for protocol in dict.fromkeys([*stored.root, *recomputed.root]):
        one, two = stored.root.get(protocol), recomputed.root.get(protocol)
        if one is None or two is None:
            yield f"protocol {protocol} is {'missing in scores.json' if one is None else 'no longer a protocol'}"
            continue
        if not _near(one.mean, two.mean, 1e-12):
            yield f"{protocol}: mean {one.mean}, recomputed {two.mean}"
        for task in dict.fromkeys([*one.tasks, *two.tasks]):
            yield from _task_differs(f"{protocol}, {task}", one, two, task)


def _task_differs(where: str, one: ProtocolScores, two: ProtocolScores, task: str) -> Iterator[str]:
    a, b = one.tasks.get(task), two.tasks.get(task)
    if a is None or b is None:
        yield f"{where} is missing in {'scores.json' if a is None else 'the recomputed scores'}"
        return
    left, right = a.model_dump(exclude={"metrics"}), b.model_dump(exclude={"metrics"})
    for metric in dict.fromkeys([*a.metrics, *b.metrics]):
        left[metric], right[metric] = a.metrics.get(metric), b.metrics.get(metric)
    for name, value in left.items():
        near = _near(value, right[name], 1e-12) if isinstance(value, float) else value == right[name]
        if not near:
            yield f"{where}: {name} {value}, recomputed {right[name]}"


def _draws(run: RunDirectory) -> Iterator[Check]:
    """The values and intervals of the bootstrap draws are those of scores.json."""
    scores = run.scores()
    try:
        draws = read_draws(run)
    except HarnessError as error:
        yield Check(what="draws", outcome=CheckOutcome.DIFFERS, detail=str(error))
        return
    if draws is None or scores is None:
        yield Check(what="draws", outcome=CheckOutcome.UNKNOWN, detail="there are none")
        return
    protocols = {protocol for of_task in draws.values() for protocol in of_task.headlines}
    if left_out := [p for p in scores.root if p not in protocols]:
        detail = f"the record has none of {', '.join(left_out)}"
        yield Check(what="draws", outcome=CheckOutcome.UNKNOWN, detail=detail)
    for protocol in (p for p in scores.root if p in protocols):
        for task, score in scores.root[protocol].tasks.items():
            resampled = draws[task].headlines.get(protocol) if task in draws else None
            found = _draws_differ(score, resampled)
            if found is not None:
                yield Check(what="draws", outcome=CheckOutcome.DIFFERS, detail=f"{protocol}, {task}: {found}")
                return
    yield Check(what="draws", outcome=CheckOutcome.SAME)


def _draws_differ(score: TaskScore, resampled: stats.Resampled | None) -> str | None:
    """The difference between a task's draws and its score; None if they agree."""
    if resampled is None:
        return None if score.value is None else "it has a score and no draws"
    ends = stats.interval(resampled)
    same = all(_near(a, b, _DRAW) for a, b in zip(score.ci95 or (), ends, strict=False))
    if same and _near(score.value, resampled.value, 1e-12):
        return None
    return f"{score.value} {score.ci95} in scores.json, {resampled.value} {ends} computed from the draws"


def _same(what: str, found: str, recorded: str, source: str) -> Check:
    if found == recorded:
        return Check(what=what, outcome=CheckOutcome.SAME)
    return Check(what=what, outcome=CheckOutcome.DIFFERS, detail=f"{found} ({source}), {recorded} in the record")


def _near(a: float | None, b: float | None, by: float) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=0.0, abs_tol=by)
