"""A leaderboard as Markdown, for people. Names that come from a user, a file or a model are escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from harness.leaderboard.rows import ENOUGH_SEEDS
from harness.leaderboard.sections import orientation, pictures, sections
from harness.leaderboard.summary import summary, verdicts, warnings
from harness.leaderboard.tables import LIMITED, Cell, Kind, Leaderboard, Row, Table
from harness.leaderboard.titles import titles
from harness.reporting.markdown import cells, escape, heading, side_by_side, unbroken
from harness.reporting.numbers import (
    MISSING,
    count,
    counted,
    duration,
    number,
    or_missing,
    p_value,
    percent,
    share,
    size,
)
from harness.scoring.verdict import DRAWS_ONLY, gain, score_interval
from harness.store.machine import differences
from harness.task import MIN_EXAMPLES, ParameterLimit

_HASH: Final = re.compile(r"[0-9a-f]{40,64}")
_INDENT: Final = 3 * "&nbsp;"
_SIGNS: Final = {Kind.BASELINE: "†", Kind.UNTRAINED: "‡", Kind.TRAINED: ""}


def render_markdown(board: Leaderboard, folder: str = "", drawn: Sequence[str] = ()) -> str:
    """The whole leaderboard; scores in percent, missing values as –.

    Args: drawn: names of the pictures in ``folder``.
    """
    claims = () if board.file is None else board.file.claim
    lines = [f"# {escape(board.suite)}, protocol {escape(board.protocol)}", ""]
    if not board.tables:
        lines += ["No finished runs.", ""]
    for title, table in zip(titles(board.tables), board.tables, strict=True):
        lines += [f"## {escape(title)}", "", *_markdown_table(table), "", *(f"- {note}" for note in _notes(table)), ""]
        lines += [*_tasks(table, board.protocol), "", *_in_words(table), *_costs(table, board.parameter_limit)]
        lines += sections(table, claims)
    lines += [*orientation(board.orientation, board.elsewhere), *pictures(folder, drawn)]
    if board.unfinished:
        lines += ["## Runs without a row", ""]
        lines += [f"- {escape(run.name)}: {escape(run.reason)}" for run in board.unfinished] + [""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> Iterator[str]:
    for sentence in warnings(table):
        yield from (f"> {escape(sentence)}", "")
    sentences = summary(table)
    if sentences:
        yield from (*(f"- {escape(sentence)}" for sentence in sentences), "")
    deltas = any(row.delta is not None for row in table.rows)
    ranked = any(row.rank is not None for row in table.rows)
    head = [*(["#"] if ranked else []), "method", "mean ± sd", "95 % interval"]
    head += [*(["Δ (95 % interval)"] if deltas else []), "seeds", "lr", "unparsed"]
    yield from heading(list(map(unbroken, head)))
    for row in table.rows:
        yield cells(_cells(row, ranked=ranked, deltas=deltas))


def _cells(row: Row, *, ranked: bool, deltas: bool) -> list[str]:
    sd = "" if row.mean.sd is None else f" ± {percent(row.mean.sd)}"
    numbers = [
        _cell(row.mean) + sd,
        score_interval(row.mean.estimate),
        *([_delta(row)] if deltas else []),
        str(len(row.group.runs)),
        f"{row.group.spec.train.lr:g}" if row.kind is Kind.TRAINED else MISSING,
        percent(sum(row.unparsed.values()) / len(row.unparsed) if row.unparsed else None),
    ]
    flags = f" ({', '.join(row.flags)})" if row.flags else ""
    return [*([or_missing(row.rank)] if ranked else []), _label(row) + flags, *map(unbroken, numbers)]


def _delta(row: Row) -> str:
    """``-4.7 (-8.0 to -1.7)``, in bold if it is significant."""
    if row.delta is None:
        return MISSING
    text = gain(row.delta.estimate)
    return f"**{text}**" if row.delta.significant else text


def _training(row: Row) -> str:
    if not row.reused:
        return duration(row.seconds)
    return "reused" if row.seconds is None else f"reused + {duration(row.seconds)}"


def _costs(table: Table, limit: ParameterLimit | None) -> Iterator[str]:
    """The parameters, training time and memory of each row."""
    yield from ("### Costs", "")
    limited = [] if limit is None else [f"≤ {limit.percent:g} %"]
    routers = any(row.router_accuracy is not None for row in table.rows)
    head = ["stored", "% of base", *limited, "active", "training", "tokens/s", "memory", *["routing"] * routers]
    yield from heading(["method", *map(unbroken, head)])
    for row in table.rows:
        parameters = row.group.runs[0].record.parameters
        numbers = [
            count(parameters.stored),
            share(parameters.percent),
            *([] if limit is None else [_within(parameters.percent, limit)]),
            count(parameters.active),
            _training(row),
            number(row.tokens_per_second),
            size(row.memory),
            *[percent(row.router_accuracy)] * routers,
        ]
        yield cells([_label(row), *map(unbroken, numbers)])
    yield ""
    rule = "" if limit is None else f" ({escape(limit.source)}: at most {limit.percent:g} %)"
    routing = "; routing: prompts in percent that are routed to their own task, without labels" if routers else ""
    yield (
        f"stored: parameters of the adapter; % of base: the same in percent of the base model's parameters{rule}; "
        "active: parameters of one task's folded LoRA. Training time and tokens per second are averages over seeds; "
        f"memory is the peak{routing}."
    )
    yield ""


def _within(percents: float | None, limit: ParameterLimit) -> str:
    return MISSING if percents is None else "yes" if percents <= limit.percent else "no"


def _label(row: Row) -> str:
    return (_INDENT if row.nested else "") + escape(row.label) + _SIGNS[row.kind]


def _tasks(table: Table, protocol: str) -> Iterator[str]:
    """The headline of each task, and which metric it is."""
    yield from ("### Tasks", "")
    for names in side_by_side(table.tasks):
        yield from heading(["method", "mean", *map(escape, names.values())])
        for row in table.rows:
            yield cells([_label(row), _cell(row.mean), *(_cell(row.cells[task]) for task in names)])
        yield ""
    headlines: dict[str, list[str]] = {}
    for task, name in table.headlines.items():
        headlines.setdefault(name, []).append(escape(task))
    yield f"Scores in percent, protocol **{escape(protocol)}**: " + "; ".join(
        f"{escape(name)} of {', '.join(tasks)}" for name, tasks in headlines.items()
    )


def _in_words(table: Table) -> Iterator[str]:
    words = verdicts(table)
    if words:
        yield from ("### Verdicts", "", *(f"- {escape(sentence)}" for sentence in words), "")


def _cell(cell: Cell) -> str:
    text = percent(cell.value)
    if cell.best:
        text = f"**{text}**"
    return text + ("≈" if cell.tied else "") + ("°" if cell.no_train else "")


def _notes(table: Table) -> Iterator[str]:
    spec = table.spec
    left_out = [escape(task) for task in table.tasks if task not in table.mean_of]
    few = f"fewer than {MIN_EXAMPLES} test examples"
    if table.mean_of:
        without = f"; without {', '.join(left_out)} ({few})" if left_out else ""
        names = ", ".join(map(escape, table.mean_of))
        yield f"The mean is over {counted(len(table.mean_of), 'task')}: {names}{without}"
    else:
        yield f"The table has no mean, because every task has {few}"
    data = ", ".join(f"{escape(k)} {escape(_short(v))}" for k, v in spec.data.fingerprints.items())
    model = "none" if spec.model is None else f"{escape(spec.model.label)} ({escape(spec.model.fingerprint)[:12]})"
    yield f"Data: {escape(spec.data.label)}" + (f" ({data})" if data else "") + f"; base model: {model}"
    yield (
        "Scores are in percent. ±: standard deviation over seeds. Intervals: 95 %, over seeds and test examples (with "
        "one seed, over test examples only)"
    )
    yield from _seed_variance(table)
    yield from _hardware(table)
    if not table.sample and any(row.group.draws_only for row in table.rows):
        yield DRAWS_ONLY[0].upper() + DRAWS_ONLY[1:]
    yield ("unparsed: percentage of predictions that do not follow the task's format, averaged over tasks")
    same_split = any(row.tuning is not None and row.tuning.split == spec.eval.split for row in table.rows)
    if same_split and spec.eval.part is not None:
        yield (
            f"Learning rates were chosen on the {spec.eval.split} examples that this table does not report: the split "
            "is divided into two parts by a hash of the examples' content"
        )
    elif same_split:
        yield (
            f"**Learning rates were chosen on the {spec.eval.split} examples that this table reports**: the scores of "
            "tuned rows are optimistic"
        )
    yield from _signs(table)


def _seed_variance(table: Table) -> Iterator[str]:
    """Whether rows share their variance between seeds, and how that was decided."""
    shared = table.seed_variance.get(None)
    several = [r for r in table.rows if r.kind is Kind.TRAINED and r.mean.value is not None and len(r.group.runs) > 1]
    if shared is not None:
        yield (
            f"Variance between seeds: shared over {shared.n_rows} rows ({percent(shared.value**0.5)} points, "
            f"{shared.df:g} degrees of freedom; Cochran's test of equal variances: p {p_value(shared.p_equal)})"
        )
    elif len(several) > 1 and min(len(r.group.runs) for r in several) < ENOUGH_SEEDS:
        yield "Variance between seeds: each row's own, because Cochran's test rejects that they are equal"


def _hardware(table: Table) -> Iterator[str]:
    """That rows come from different machines, if they do."""
    trained = [row.group.hardware for row in table.rows if row.kind is Kind.TRAINED]
    found = dict.fromkeys(text for other in trained[1:] for text in differences(trained[0], other))
    if found:
        yield f"Rows come from different hardware: {escape('; '.join(found))}"


def _short(part: str) -> str:
    """A hash or a commit by its first digits, anything else as it is."""
    return part[:12] if _HASH.fullmatch(part) else part


def _ablations(table: Table) -> Iterator[str]:
    """What Δ is, why it was not tested, and what else ablations change."""
    if any(row.delta is not None for row in table.rows):
        yield (
            "Δ: difference of the means in percentage points, an ablation minus the method that it is nested under; "
            "**bold**: significant (5 %, Holm's correction for all ablations of the table)"
        )
        reasons = sorted({r.delta.untested for r in table.rows if r.delta is not None and r.delta.untested is not None})
        if reasons:
            yield f"Δ not tested: {'; '.join(map(escape, reasons))}"
        for row in table.rows:
            if row.also:
                yield f"{escape(row.label)} differs from its method also in: {escape(', '.join(row.also))}"


def _signs(table: Table) -> Iterator[str]:
    every = [cell for row in table.rows for cell in (row.mean, *row.cells.values())]
    if any(cell.best for cell in every):
        yield (
            "**bold**: the best trained row of a column; ≈: not tested, or not significantly different from it (5 %, "
            "corrected for all pairs of rows of the column)"
        )
    if any(cell.no_train for cell in every):
        yield "° the task has no training examples"
    if any(row.kind is Kind.BASELINE for row in table.rows):
        yield f"{_SIGNS[Kind.BASELINE]} baseline without a language model, not ranked"
    if any(row.kind is Kind.UNTRAINED for row in table.rows):
        yield f"{_SIGNS[Kind.UNTRAINED]} baseline: the base model without training, not ranked"
    yield from _ablations(table)
    for row in table.rows:
        if row.unranked is not None and not row.nested:
            yield f"{escape(row.label)} has no rank: {escape(row.unranked)}"
    if any(row.reused for row in table.rows):
        yield (
            "reused: every training stage was reused from the runs of another row, where its time is listed; a time "
            "beside it is that of a search"
        )
    for row in table.rows:
        if row.n_truncated_targets:
            yield (
                f"{escape(row.label)}: {counted(row.n_truncated_targets, 'training example')} had truncated "
                "targets, from which no end of an answer is learned; give a larger train.max_length"
            )
    if any(LIMITED in row.flags for row in table.rows):
        yield "limited: trained or evaluated on only part of the examples, not ranked"
