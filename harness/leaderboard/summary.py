"""The content of a table in a few computed sentences: what comes before its figures in Markdown and in the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from harness.leaderboard.tables import Kind, Row, Table
from harness.reporting.numbers import counted, percent
from harness.scoring.significance import Difference, Pair, best_against, best_on_tasks, family
from harness.scoring.verdict import gain, score_interval, verdict

_MOST_NAMES: Final = 3  # A sentence names at most this many tasks.
_MOST_RIVALS: Final = 5  # The best method is compared on each task with at most this many others.


def warnings(table: Table) -> list[str]:
    """Why a table cannot show which method is better, if it cannot."""
    found = []
    if table.sample:
        found.append(
            f"This is the embedded sample, not {table.spec.suite.name}. Its few small examples show that every method "
            "runs. They do not show which method is better, so no row is ranked or marked."
        )
    return [*found, *_no_better_than_a_baseline(table)]


def summary(table: Table) -> list[str]:
    """What is significant: the best method's lead, its lead on each task, the ablations. Nothing on a sample."""
    ranked = ranked_rows(table)
    if table.sample or not ranked:
        return []
    return [*_lead(table, ranked), *_on_tasks(table, ranked), *_ablations(table)]


def verdicts(table: Table) -> list[str]:
    """The best ranked method against the other ranked ones, and each ablation against its method; none on a sample."""
    if table.sample:
        return []
    ranked = ranked_rows(table)
    words = [
        verdict(ranked[0].label, other.label, lead)
        for other, lead in zip(ranked[1:], _leads(table, ranked), strict=True)
    ]
    parent = ""
    for row in table.rows:
        if not row.nested:
            parent = row.label
        elif row.delta is not None:
            words.append(verdict(row.label, parent, row.delta))
    return words


def ranked_rows(table: Table) -> list[Row]:
    """The rows with a rank, best first."""
    return sorted((r for r in table.rows if r.rank is not None), key=lambda r: r.rank or 0)


def _leads(table: Table, ranked: Sequence[Row]) -> list[Difference]:
    """The differences of the means of the best ranked row and each of the others."""
    shared = table.seed_variance.get(None)
    return best_against([Pair(a=ranked[0].group, b=other.group, shared=shared) for other in ranked[1:]])


def _no_better_than_a_baseline(table: Table) -> Iterator[str]:
    """A sentence where no trained row is significantly above the best baseline without a language model."""
    trained = [row for row in table.rows if row.kind is Kind.TRAINED]
    baselines = [row for row in table.rows if row.kind is Kind.BASELINE and row.mean.value is not None]
    if not trained or not baselines:
        return
    best = max(baselines, key=lambda row: row.mean.value or 0.0)
    shared = table.seed_variance.get(None)
    found = family([Pair(a=row.group, b=best.group, shared=shared) for row in trained])
    if not any(f.significant and f.estimate is not None and f.estimate.value > 0 for f in found):
        yield (
            f"No trained method is significantly above {best.label} ({percent(best.mean.value)}), which has "
            "no language model. So this table cannot show which method is better."
        )


def _lead(table: Table, ranked: Sequence[Row]) -> Iterator[str]:
    """The best ranked method, and the others by whether the difference of the means is significant."""
    best, others = ranked[0], ranked[1:]
    mean = f"{percent(best.mean.value)} ({score_interval(best.mean.estimate)})"
    if not others:
        yield f"One method is ranked: {best.label}, mean {mean}."
        return
    leads = list(zip(others, _leads(table, ranked), strict=True))
    above = [row.label for row, lead in leads if lead.significant]
    open_ = [
        f"{row.label} (difference {gain(lead.estimate)}, minimum detectable difference {percent(lead.mdd)})"
        for row, lead in leads
        if not lead.significant and lead.untested is None and lead.estimate is not None
    ]
    untested = [row.label for row, lead in leads if lead.untested is not None or lead.estimate is None]
    yield f"Best of {counted(len(ranked), 'ranked method')}: {best.label}, mean {mean}."
    if above:
        yield f"Its mean is significantly above that of {_listed(above)}."
    if open_:
        yield f"Its mean does not differ significantly from that of {_listed(open_)}."
    if untested:
        yield f"Its mean was not tested against that of {_listed(untested)}."


def _on_tasks(table: Table, ranked: Sequence[Row]) -> Iterator[str]:
    """On how many tasks the best ranked method is significantly above and below each other one."""
    best, others = ranked[0], ranked[1 : 1 + _MOST_RIVALS]
    tasks = [t for t in table.tasks if best.cells[t].value is not None]
    pairs = {
        task: [Pair(a=best.group, b=other.group, task=task, shared=table.seed_variance.get(task)) for other in others]
        for task in tasks
    }
    found = best_on_tasks(pairs)
    for i, other in enumerate(others):
        of_task = {task: found[task][i] for task in tasks}
        tested = {t: d.estimate.value for t, d in of_task.items() if d.p_adjusted is not None and d.estimate}
        if not tested:
            continue
        above = [t for t, value in tested.items() if of_task[t].significant and value > 0]
        below = [t for t, value in tested.items() if of_task[t].significant and value < 0]
        n_open = len(tested) - len(above) - len(below)
        rest = f"; no significant difference on {n_open}" if n_open else ""
        yield (
            f"{best.label} is significantly above {other.label} on {len(above)} of {counted(len(tested), 'task')}"
            f"{_named(above)}, below on {len(below)}{_named(below)}{rest}."
        )


def _ablations(table: Table) -> Iterator[str]:
    """The ablations that change the mean significantly."""
    tested = [row for row in table.rows if row.delta is not None and row.delta.p_adjusted is not None]
    changed = [f"{r.label} {gain(r.delta.estimate)}" for r in tested if r.delta is not None and r.delta.significant]
    if tested:
        names = f": {_listed(changed)}" if changed else ""
        yield f"{len(changed)} of {counted(len(tested), 'ablation')} differ significantly from their method{names}."


def _named(tasks: Sequence[str]) -> str:
    more = f" and {len(tasks) - _MOST_NAMES} more" if len(tasks) > _MOST_NAMES else ""
    return f" ({', '.join(tasks[:_MOST_NAMES])}{more})" if tasks else ""


def _listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
