"""Scores of predictions under every protocol of a suite: no model, no GPU, made again at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError, unknown
from harness.reporting.numbers import MISSING, percent, percent_range
from harness.scoring import statistics as stats
from harness.scoring.draws import Draws, TaskDraws, rows_fingerprint, write_draws
from harness.scoring.judge import Judged, _judge
from harness.store.files import write_json
from harness.store.record import Prediction, ProtocolScores, RunRecord, Scores, TaskScore, text_hash
from harness.store.run_directory import RunDirectory
from harness.task import NOT_PARSED, Example, Suite, Task

MIN_ROWS: Final = 50  # a mean is over the tasks with at least this many test rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Everything that follows from predictions. notes: what a person should be told (missing predictions, ...)."""

    scores: Scores
    diagnostics: dict[str, Any]
    draws: Draws
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _TaskResult:
    scores: dict[str, TaskScore]
    draws: TaskDraws | None
    diagnostics: dict[str, Any] | None


def score_predictions(
    suite: Suite,
    examples: Mapping[str, Sequence[Example]],
    predictions: Mapping[str, Sequence[Prediction]],
    *,
    n_train: Mapping[str, int] | None = None,
    min_rows: int = MIN_ROWS,
) -> Scored:
    """Score predictions under every protocol.

    Args:
        examples: the test rows of every task that was run, by task, in the order of the data.
        predictions: by task, in any order. A task that lacks some has no score, and ``n`` says how many there are.
        n_train: training rows by task, where known.
        min_rows: the mean is over the tasks with at least this many test rows (1 on the sample).

    Raises: DataError naming the id for a prediction of an unknown example, a second prediction of one example, or one
        that was made for another prompt or target.
    """
    results, notes = {}, []
    for name, rows in examples.items():
        if name not in suite.tasks:
            raise unknown(f"task of {suite.name}", name, suite.tasks)
        matched = _match(name, rows, predictions.get(name, ()))
        kept = [p for p in matched if p is not None]
        if len(kept) < len(rows):
            first = next(e.id for e, p in zip(rows, matched, strict=True) if p is None)
            notes.append(f"{name}: {len(rows) - len(kept)} of {len(rows)} rows have no prediction ({first!r} first)")
        cuts = [p.cut for p in kept if p.cut is not None]
        n_cut = sum(cuts) if len(cuts) == len(kept) else None
        results[name] = _score_task(
            suite.tasks[name],
            rows,
            [None if p is None else p.text for p in matched],
            n_train=None if n_train is None else n_train.get(name, 0),
            n_cut=n_cut,
        )
        if _withheld(rows):
            notes.append(f"{name}: the data withhold its targets, so it has no score")
    return _collect(suite, examples, results, min_rows, notes)


def write_scored(directory: RunDirectory, scored: Scored) -> None:
    """Write bootstrap.npz, diagnostics.json and, last, scores.json."""
    write_draws(directory, scored.draws)
    write_json(directory.path / "diagnostics.json", scored.diagnostics)
    directory.write_scores(scored.scores)


def to_json(directory: Path | None, record: RunRecord | None, scores: Scores) -> dict[str, Any]:
    """What ``--json`` prints for a run or a scored file."""
    return {
        "directory": None if directory is None else str(directory),
        "record": None if record is None else record.model_dump(mode="json"),
        "scores": scores.model_dump(mode="json"),
    }


def render_scores(scores: Scores, protocol: str) -> str:
    """One protocol's table as plain text, in percent; missing prints –.

    Raises: UsageError for a protocol that the scores do not have.
    """
    from tabulate import tabulate

    if protocol not in scores.root:
        raise unknown("protocol", protocol, scores.root)
    table = scores.root[protocol]
    header = ("task", "headline", "value", "95 % interval", "n", "n_train", "unparsed", "cut", "invented")
    rows = [
        (
            task,
            s.headline,
            percent(s.value),
            percent_range(s.ci95),
            s.n,
            *(MISSING if count is None else count for count in (s.n_train, s.n_unparsed, s.n_cut, s.n_invented)),
        )
        for task, s in table.tasks.items()
    ]
    left_out = [task for task in table.tasks if task not in table.mean_of]
    of = f"mean of {len(table.mean_of)} tasks" + (f" (without {', '.join(left_out)})" if left_out else "")
    lines = [
        f"protocol {protocol}; percent; intervals are about the test rows",
        tabulate(rows, header, tablefmt="simple", disable_numparse=True, colalign=("left", "left", *["right"] * 7)),
        "",
        f"{of}: {percent(table.mean)}" + (f" ({percent_range(table.mean_ci95)})" if table.mean_ci95 else ""),
    ]
    return "\n".join(lines)


def _match(task: str, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction | None]:
    """The prediction of each example, or None."""
    by_id: dict[str, Prediction] = {}
    for p in predictions:
        if p.id in by_id:
            raise DataError(
                f"{task}: two predictions of row {p.id!r}. Delete the task's predictions to make them again."
            )
        by_id[p.id] = p
    matched = [by_id.pop(e.id, None) for e in examples]
    if by_id:
        raise DataError(
            f"{task}: {len(by_id)} predictions of rows that the data do not have, {next(iter(by_id))!r} first. "
            "Score with the data, split and limit of the run."
        )
    for e, made in zip(examples, matched, strict=True):
        if made is None:
            continue
        for what, now, then in (("prompt", e.prompt, made.prompt_hash), ("target", e.target, made.target_hash)):
            if text_hash(now) != then:
                raise DataError(
                    f"{task}, row {e.id!r}: the prediction was made for another {what} (hash {then}, in the data "
                    f"{text_hash(now)}): the data have changed. Give the data of the run with --data, or generate "
                    "again: harness evaluate RUN"
                )
    return matched


def _withheld(examples: Sequence[Example]) -> bool:
    return not any(e.target for e in examples)


def _score_task(
    task: Task, examples: Sequence[Example], texts: Sequence[str | None], *, n_train: int | None, n_cut: int | None
) -> _TaskResult:
    """One task under all of its protocols; no score unless every row has a text and the targets are known."""
    given = [text for text in texts if text is not None]
    if not examples or len(given) < len(examples) or _withheld(examples):
        n = 0 if _withheld(examples) else len(given)
        empty = {
            name: TaskScore(
                headline=rule.headline,
                value=None,
                ci95=None,
                metrics={},
                n=n,
                n_train=n_train,
                n_unparsed=None,
                n_cut=n_cut,
            )
            for name, rule in task.protocols.items()
        }
        return _TaskResult(scores=empty, draws=None, diagnostics=None)
    counts = stats.row_counts(task.name, len(examples))
    scores, headlines, right = {}, {}, {}
    shared: dict[tuple[int, ...], stats.Resampled] = {}
    for name, judged in _judge(task, examples, given).items():
        rule = task.protocols[name]
        key = (id(rule.parse), id(rule.statistics), hash(rule.headline))
        if key not in shared:
            shared[key] = stats.resample(judged.statistics, rule.headline, counts)
        headlines[name] = shared[key]
        if task.one_label:
            right[name] = _right(judged)
        scores[name] = TaskScore(
            headline=rule.headline,
            value=shared[key].value,
            ci95=stats.interval(shared[key]),
            metrics=stats.metrics(judged.statistics),
            n=len(examples),
            n_train=n_train,
            n_unparsed=judged.n_unparsed,
            n_cut=n_cut,
            n_invented=judged.n_invented,
        )
    draws = TaskDraws(rows=rows_fingerprint(examples), headlines=headlines, right=right)
    found = None if task.diagnose is None else dict(task.diagnose(examples, given))
    return _TaskResult(scores=scores, draws=draws, diagnostics=found)


def _right(judged: Judged) -> NDArray[np.bool_]:
    pairs = zip(judged.golds, judged.answers, strict=True)
    return np.array([a is not NOT_PARSED and bool(g == a) for g, a in pairs], dtype=np.bool_)


def _collect(
    suite: Suite,
    examples: Mapping[str, Sequence[Example]],
    results: Mapping[str, _TaskResult],
    min_rows: int,
    notes: Sequence[str],
) -> Scored:
    """Tables by protocol, in the order in which the suite's tasks name them; tasks in the suite's order."""
    order = [name for name in suite.tasks if name in results]
    protocols = list(dict.fromkeys(p for name in order for p in suite.tasks[name].protocols))
    draws = {name: kept for name in order if (kept := results[name].draws) is not None}
    tables = {}
    for protocol in protocols:
        tasks = {name: results[name].scores[protocol] for name in order if protocol in results[name].scores}
        mean_of = tuple(name for name in tasks if len(examples[name]) >= min_rows)
        mean = None
        if mean_of and all(tasks[name].value is not None for name in mean_of):
            mean = stats.mean_over_tasks([draws[name].headlines[protocol] for name in mean_of])
        tables[protocol] = ProtocolScores(
            mean=None if mean is None else mean.value,
            mean_ci95=None if mean is None else stats.interval(mean),
            mean_of=mean_of,
            tasks=tasks,
        )
    diagnostics = {name: found for name in order if (found := results[name].diagnostics) is not None}
    return Scored(scores=Scores(tables), diagnostics=diagnostics, draws=draws, notes=tuple(notes))
