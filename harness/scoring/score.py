"""Scores of predictions under every protocol of a suite, computed without a model and at any time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import DataError, unknown
from harness.registry import list_command
from harness.reporting.numbers import counted, or_missing, percent, percent_range
from harness.scoring import statistics as stats
from harness.scoring.draws import Draws, TaskDraws, examples_fingerprint, write_draws
from harness.scoring.judge import Compute, JudgeCache, Parse, judge
from harness.store.files import write_json
from harness.store.record import Prediction, ProtocolScores, RunRecord, Scores, TaskScore, text_hash
from harness.store.run_directory import RunDirectory
from harness.task import MIN_EXAMPLES, Example, Floats, Suite, Task

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """All results of scoring predictions: scores by protocol, diagnostics by task, and bootstrap draws."""

    scores: Scores
    diagnostics: dict[str, Any]
    draws: Draws


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskResult:
    """One task's scores by protocol. draws, diagnostics: None if the task has no score."""

    scores: dict[str, TaskScore]
    draws: TaskDraws | None
    diagnostics: dict[str, Any] | None


def score_predictions(
    suite: Suite,
    examples: Mapping[str, Sequence[Example]],
    predictions: Mapping[str, Sequence[Prediction]],
    *,
    n_train: Mapping[str, int] | None = None,
    min_examples: int = MIN_EXAMPLES,
) -> Scored:
    """Score predictions under every protocol. Missing predictions and withheld targets are logged as warnings.

    Args:
        examples: the test examples of every evaluated task, by task, in the order of the data.
        predictions: by task, in any order. A task without some of them has no score, and ``n`` is their number.
        n_train: training examples by task, where known.
        min_examples: the mean leaves out tasks with fewer test examples, or units (1 on an embedded sample).

    Raises: DataError naming the id, for a prediction of an unknown example, a second prediction of one example, or one
        that was generated for another prompt or target.
    """
    results = {}
    for name, of_task in examples.items():
        if name not in suite.tasks:
            raise unknown(f"task of {suite.name}", name, suite.tasks)
        matched = match(name, of_task, predictions.get(name, ()))
        given = [p for p in matched if p is not None]
        if len(given) < len(of_task):
            first = next(e.id for e, p in zip(of_task, matched, strict=True) if p is None)
            n_missing = len(of_task) - len(given)
            LOG.warning(
                "%s: %d of %d examples have no prediction (the first is %r), so it has no score",
                *(name, n_missing, len(of_task), first),
            )
        truncated = [p.cut for p in given if p.cut is not None]
        results[name] = score_task(
            suite.tasks[name],
            of_task,
            [None if p is None else p.text for p in matched],
            n_train=None if n_train is None else n_train.get(name, 0),
            n_truncated=sum(truncated) if len(truncated) == len(given) else None,
        )
        if withheld(of_task):
            LOG.warning("%s: the data withhold its targets, so it has no score", name)
    return collect(suite, examples, results, min_examples)


def write_scored(directory: RunDirectory, scored: Scored) -> None:
    """Write bootstrap.npz, diagnostics.json and, last, scores.json."""
    write_draws(directory, scored.draws)
    write_json(directory.path / "diagnostics.json", scored.diagnostics)
    directory.write_scores(scored.scores)


def to_json(directory: Path | None, record: RunRecord | None, scores: Scores) -> dict[str, Any]:
    """The output of ``--json`` for a run or a scored file."""
    return {
        "directory": None if directory is None else str(directory),
        "record": None if record is None else record.model_dump(mode="json"),
        "scores": scores.model_dump(mode="json"),
    }


def check_protocol(suite: Suite, protocol: str | None) -> None:
    """Before a run is started, that its scores will have this protocol. Raises: UsageError for an unknown one."""
    known = {name for task in suite.tasks.values() for name in task.protocols}
    if protocol is not None and protocol not in known:
        raise unknown(f"protocol of {suite.name}", protocol, known, see=list_command(suite.name))


def render_scores(scores: Scores, protocol: str) -> str:
    """One protocol's table as plain text, in percent; a missing value prints as –.

    Raises: UsageError for a protocol that the scores do not have.
    """
    from tabulate import tabulate

    if protocol not in scores.root:
        raise unknown("protocol", protocol, scores.root)
    table = scores.root[protocol]
    header = ("task", "headline", "value", "95 % interval", "n", "n_train", "unparsed", "truncated", "invented")
    lines = [
        (
            task,
            s.headline,
            percent(s.value),
            percent_range(s.ci95),
            s.n,
            *map(or_missing, (s.n_train, s.n_unparsed, s.n_cut, s.n_invented)),
        )
        for task, s in table.tasks.items()
    ]
    left_out = [task for task in table.tasks if task not in table.mean_of]
    few = f"fewer than {MIN_EXAMPLES} independent examples"
    if table.mean_of:
        without = f" (without {', '.join(left_out)}: {few})" if left_out else ""
        mean_of = f"mean of {counted(len(table.mean_of), 'task')}{without}"
    else:
        mean_of = f"no mean, because every task has {few}"
    mean_range = f" ({percent_range(table.mean_ci95)})" if table.mean_ci95 else ""
    mean_line = f"{mean_of}: {percent(table.mean)}{mean_range}" if table.mean_of else mean_of
    grouped = [
        f"{task}: the interval is over groups of examples that belong together ({s.n_units}), not over single examples"
        for task, s in table.tasks.items()
        if s.n_units is not None
    ]
    align = ("left", "left", *["right"] * 7)
    return "\n".join(
        [
            f"protocol {protocol}; scores in percent; 95 % intervals over the test examples",
            tabulate(lines, header, tablefmt="simple", disable_numparse=True, colalign=align),
            "",
            *grouped,
            mean_line,
        ]
    )


def withheld(examples: Sequence[Example]) -> bool:
    """Whether no example has a target, as in published test sets."""
    return not any(e.has_target for e in examples)


def score_task(
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[str | None],
    *,
    n_train: int | None,
    n_truncated: int | None,
) -> TaskResult:
    """One task under all of its protocols; no score unless targets are known and every example has a prediction."""
    given = [text for text in predictions if text is not None]
    if not examples or len(given) < len(examples) or withheld(examples):
        n = 0 if withheld(examples) else len(given)
        return TaskResult(scores=_without_score(task, n, n_train, n_truncated), draws=None, diagnostics=None)
    cache = JudgeCache()
    resampled: dict[tuple[Parse, Compute, str], stats.Resampled] = {}  # protocols that agree in these share draws
    counts: dict[int, Floats] = {}  # Protocols with the same units share their resampled test sets.
    scores, headlines, correct = {}, {}, {}
    for name, rule in task.protocols.items():
        judged = judge(task, name, examples, given, cache)
        key = (rule.parse, rule.statistics, rule.headline)
        n_units = len(judged.statistics.per_unit)
        if n_units not in counts:
            counts[n_units] = stats.unit_counts(task.name, n_units)
        if key not in resampled:
            resampled[key] = stats.resample(judged.statistics, rule.headline, counts[n_units])
        headlines[name] = resampled[key]
        if task.one_label and n_units == len(examples):
            correct[name] = judged.correct
        scores[name] = TaskScore(
            headline=rule.headline,
            value=resampled[key].value,
            ci95=stats.interval(resampled[key]),
            metrics=stats.metrics(judged.statistics),
            n=len(examples),
            n_train=n_train,
            n_unparsed=judged.n_unparsed,
            n_cut=n_truncated,
            n_invented=judged.n_invented,
            n_units=None if n_units == len(examples) else n_units,
        )
    draws = TaskDraws(fingerprint=examples_fingerprint(examples), headlines=headlines, correct=correct)
    diagnostics = None if task.diagnose is None else dict(task.diagnose(examples, given))
    return TaskResult(scores=scores, draws=draws, diagnostics=diagnostics)


def collect(
    suite: Suite,
    examples: Mapping[str, Sequence[Example]],
    results: Mapping[str, TaskResult],
    min_examples: int,
) -> Scored:
    """Tables by protocol, in the order in which the suite's tasks name them; tasks in the suite's order."""
    order = [name for name in suite.tasks if name in results]
    protocols = list(dict.fromkeys(p for name in order for p in suite.tasks[name].protocols))
    draws = {name: of_task for name in order if (of_task := results[name].draws) is not None}
    tables = {}
    for protocol in protocols:
        tasks = {name: results[name].scores[protocol] for name in order if protocol in results[name].scores}
        mean_of = tuple(name for name in tasks if (tasks[name].n_units or len(examples[name])) >= min_examples)
        mean = None
        if mean_of and all(tasks[name].value is not None for name in mean_of):
            mean = stats.mean_over_tasks([draws[name].headlines[protocol] for name in mean_of])
        tables[protocol] = ProtocolScores(
            mean=None if mean is None else mean.value,
            mean_ci95=None if mean is None else stats.interval(mean),
            mean_of=mean_of,
            tasks=tasks,
        )
    diagnostics = {name: figures for name in order if (figures := results[name].diagnostics) is not None}
    return Scored(scores=Scores(tables), diagnostics=diagnostics, draws=draws)


def match(task: str, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction | None]:
    """The prediction of each example of a task, or None.

    Raises: DataError naming the id, for a second prediction of an example, one of an unknown example, and one that was
        generated for another prompt or target.
    """
    by_id: dict[str, Prediction] = {}
    for p in predictions:
        if p.id in by_id:
            raise DataError(
                f"{task}: two predictions for example {p.id!r}. Delete this task's predictions and resume the run."
            )
        by_id[p.id] = p
    matched = [by_id.pop(e.id, None) for e in examples]
    if by_id:
        raise DataError(
            f"{task}: {len(by_id)} predictions for examples that are not in the data, such as {next(iter(by_id))!r}. "
            "Use the data, split and limit of the run."
        )
    for e, prediction in zip(examples, matched, strict=True):
        if prediction is None:
            continue
        for what, now, then in (
            ("prompt", e.prompt, prediction.prompt_hash),
            ("target", e.target, prediction.target_hash),
        ):
            if text_hash(now) != then:
                raise DataError(
                    f"{task}, example {e.id!r}: the prediction was generated for another {what} (hash {then}, in the "
                    f"data {text_hash(now)}). The data have changed: give the data of the run with --data, or generate "
                    "again with harness evaluate RUN"
                )
    return matched


def _without_score(task: Task, n: int, n_train: int | None, n_truncated: int | None) -> dict[str, TaskScore]:
    return {
        name: TaskScore(
            headline=rule.headline,
            value=None,
            ci95=None,
            metrics={},
            n=n,
            n_train=n_train,
            n_unparsed=None,
            n_cut=n_truncated,
        )
        for name, rule in task.protocols.items()
    }
