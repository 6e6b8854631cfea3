"""Runs as a leaderboard: one table for each set of comparable runs, one row for each method.

Runs are in one table when their data, base model, split, limits, prompt format and tasks are equal. Baselines without
a base model (``majority``, ``nearest``) are in every table of the same data. Runs that differ only in the seed are one
row, and ablations are nested under their method with the difference to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.config.spec import LOCAL
from harness.leaderboard.rows import make_row, make_rows, shared_variances, transfers_of
from harness.leaderboard.sweeps import seed_noise_of, sort_runs, sweeps_of
from harness.leaderboard.tables import Leaderboard, Row, Table, Unfinished
from harness.scoring.comparable import question
from harness.scoring.groups import ScoredRun, SeedGroup, by_seed, scored_run
from harness.store.run_directory import RunDirectory, State
from harness.sweep.entries import Matcher
from harness.sweep.spec import BoardSpec
from harness.task import ParameterLimit


def build_leaderboard(
    runs: Sequence[RunDirectory],
    suite: str,
    protocol: str,
    *,
    reference: str | None = None,
    file: BoardSpec | None = None,
    parameter_limit: ParameterLimit | None = None,
) -> Leaderboard:
    """Group runs into tables and rows.

    Args:
        runs: of any suite, finished or not; those of other suites are ignored.
        protocol: the scoring rule of all scores; a run without scores under it is listed as unfinished.
        reference: the method that trains each task alone; where a table has it, transfer is measured against it.
        file: the TOML file of the leaderboard. Runs that it requests only for sweeps and seed noise have no rows.
        parameter_limit: the suite's rule on the size of an adapter.
    """
    scored, unfinished = _scored(runs, suite, protocol)
    matcher = None if file is None else Matcher(file)
    elsewhere = by_seed([r for r in scored if r.record.spec.backend != LOCAL], protocol)
    by_use = sort_runs([r for r in scored if r.record.spec.backend == LOCAL], matcher)
    tables = []
    for groups in _comparable(by_seed(by_use.rows, protocol)):
        table = _table(groups, reference)
        if matcher is not None:
            sweeps = sweeps_of(by_use, matcher, _typical(groups), protocol)
            table = replace(table, sweeps=sweeps, seed_noise=seed_noise_of(by_use, groups, protocol))
        tables.append(table)
    return Leaderboard(
        suite=suite,
        protocol=protocol,
        tables=tuple(tables),
        unfinished=tuple(unfinished),
        elsewhere=tuple(_elsewhere(elsewhere)),
        file=file,
        parameter_limit=parameter_limit,
    )


def _scored(runs: Sequence[RunDirectory], suite: str, protocol: str) -> tuple[list[ScoredRun], list[Unfinished]]:
    """The suite's runs with scores under the protocol, and the suite's other runs with reasons."""
    scored: list[ScoredRun] = []
    unfinished: list[Unfinished] = []
    for directory in runs:
        spec = directory.spec()
        if spec is None or spec.suite.name != suite:
            continue
        if (state := directory.state()) is not State.DONE:
            unfinished.append(Unfinished(name=directory.name, reason=_reason(directory, state)))
        elif (run := scored_run(directory, protocol)) is None:
            unfinished.append(Unfinished(name=directory.name, reason=f"no scores under the protocol {protocol}"))
        else:
            scored.append(run)
    return scored, unfinished


def _reason(run: RunDirectory, state: State) -> str:
    """``stopped``, or ``failed in train: NotFinite: the loss is nan`` with the error's first sentence."""
    failure = run.failure()
    if state is not State.FAILED or failure is None:
        return str(state)
    return f"failed in {failure.stage}: {failure.error}: {failure.message.split('. ')[0]}"


def _elsewhere(groups: Sequence[SeedGroup]) -> list[Row]:
    """Rows of back ends, best first: ``gpt-x (lm-eval:openai-chat-completions)``."""
    rows = []
    for group in groups:
        model = group.spec.model
        name = group.name if model is None else model.label
        rows.append(make_row(group, name, tuple(group.runs[0].table.tasks)))
    return sorted(rows, key=lambda r: -1.0 if r.mean.value is None else r.mean.value, reverse=True)


def _comparable(groups: Sequence[SeedGroup]) -> list[list[SeedGroup]]:
    """Groups by table, the table with most rows first; groups without a model are in every table of their data.

    Rows with presets of papers are in a table of their own, since each of them has its paper's training.
    """
    tables: dict[tuple[str, bool, str], list[SeedGroup]] = {}
    without_model: dict[str, list[SeedGroup]] = {}
    for group in groups:
        data = repr(question(group.spec, model=False))
        if group.spec.model is None:
            without_model.setdefault(data, []).append(group)
        else:
            key = (data, group.spec.method.preset is not None, group.spec.model.fingerprint)
            tables.setdefault(key, []).append(group)
    for (data, *_), of_table in tables.items():
        of_table.extend(without_model.get(data, ()))
    alone = [of_data for data, of_data in without_model.items() if all(data != key[0] for key in tables)]
    return sorted([*tables.values(), *alone], key=len, reverse=True)


def _typical(groups: Sequence[SeedGroup]) -> SeedGroup:
    """A group of the table with a base model, where there is one."""
    return next((g for g in groups if g.spec.model is not None), groups[0])


def _table(groups: Sequence[SeedGroup], reference: str | None) -> Table:
    first = _typical(groups)
    scores = first.runs[0].table
    tasks = tuple(scores.tasks)
    sample = any(run.record.sample for g in groups for run in g.runs)
    shared = shared_variances(groups, tasks)
    rows = make_rows(groups, tasks, shared, ranked=not sample)
    return Table(
        spec=first.spec,
        sample=sample,
        tasks=tasks,
        headlines={task: score.headline for task, score in scores.tasks.items()},
        mean_of=scores.mean_of,
        rows=tuple(rows),
        transfers=transfers_of(rows, reference, tasks, shared),
        seed_variance=shared,
    )
