"""A leaderboard as Markdown, for people. Names that came from a user, a file or a model are escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from harness.groups import difference
from harness.leaderboard import LIMITED, Cell, Kind, Leaderboard, Row, Table
from harness.leaderboard_more import orientation, pictures, sections
from harness.markdown import cells, duration, escape, heading, short_names, size, span
from harness.score import MISSING, percent
from harness.transfer import transfer_in_words
from harness.verdict import points, verdict

ONE_PERCENT: Final = 1.0  # PEFT parameters in percent of the base model's: the largest that PromptCBLUE's rule allows
_MANY_UNPARSED: Final = 0.01  # a smaller share of answers without the task's format is not worth a line
_SIGNS: Final = {Kind.TRIVIAL: "†", Kind.UNTRAINED: "‡", Kind.TRAINED: ""}


def render_markdown(board: Leaderboard, folder: str = "", drawn: Sequence[str] = ()) -> str:
    """The whole leaderboard; values in percent, missing as –.

    Args: drawn: names of the pictures that stand in ``folder``.
    """
    claims = () if board.file is None else board.file.claim
    lines = [f"# {escape(board.suite)}, protocol {escape(board.protocol)}", ""]
    if not board.tables:
        lines += ["No finished runs.", ""]
    for table in board.tables:
        lines += [*_markdown_table(table), "", *(f"- {note}" for note in _notes(table, board.protocol)), ""]
        lines += sections(table, claims)
    lines += [*orientation(board.orientation), *pictures(folder, drawn)]
    if board.unfinished:
        lines += ["## Without a row", ""]
        lines += [f"- {escape(run.name)}: {escape(run.reason)}" for run in board.unfinished] + [""]
    return "\n".join(lines)


def verdicts(table: Table) -> list[str]:
    """The best ranked method against the other ranked ones, and each ablation against its method; none on a sample."""
    if table.sample:
        return []
    ranked = sorted((r for r in table.rows if r.rank is not None), key=lambda r: r.rank or 0)
    found = []
    for other in ranked[1:]:
        gain = difference(ranked[0].group, other.group, None)
        if gain is not None:
            found.append(verdict(ranked[0].label, other.label, gain))
    parent = ""
    for row in table.rows:
        if not row.beneath:
            parent = row.label
        elif row.delta is not None:
            found.append(verdict(row.label, parent, row.delta))
    return found


def _markdown_table(table: Table) -> Iterator[str]:
    spec = table.spec
    model = "no base model" if spec.model is None else spec.model.label
    shots = f", {spec.shots} shots" if spec.shots else ""
    limit = f", {spec.eval.per_task} rows of each task" if spec.eval.per_task is not None else ""
    title = f"{spec.data.label}, {model}, {spec.eval.split} split{limit}, {spec.prompt} prompt{shots}"
    yield f"## {escape(title)}"
    yield ""
    if table.sample:
        yield (
            f"> **This is the embedded sample, not {escape(spec.suite.name)}.** Its few small rows show that all of it "
            "runs; they say nothing about which method is better, so no row is ranked and none is marked."
        )
        yield ""
    deltas = any(row.delta is not None for row in table.rows)
    names = [escape(name) for name in short_names(table.tasks)]
    head = ["#", "method", "mean", *(["Δ"] if deltas else []), *names]
    head += ["stored", "active", "% of base", "1 % rule", "seeds", "lr", "training", "tokens/s", "memory"]
    yield from heading(head)
    for row in table.rows:
        yield cells(_cells(row, table.tasks, deltas=deltas))


def _cells(row: Row, tasks: Sequence[str], *, deltas: bool) -> list[str]:
    count = row.group.runs[0].record.parameters
    flags = f" ({', '.join(row.flags)})" if row.flags else ""
    name = ("&emsp;" if row.beneath else "") + escape(row.label) + _SIGNS[row.kind] + flags
    delta = [MISSING if row.delta is None else points(row.delta)] if deltas else []
    trained = row.kind is Kind.TRAINED
    return [
        str(row.rank or MISSING),
        name,
        _mean_cell(row.mean),
        *delta,
        *(_cell(row.cells[task]) for task in tasks),
        f"{count.stored:,}",
        f"{count.active:,}",
        MISSING if count.percent is None else f"{count.percent:.3g}",
        MISSING if count.percent is None else "kept" if count.percent <= ONE_PERCENT else "broken",
        str(len(row.group.runs)),
        f"{row.group.spec.train.lr:g}" if trained else MISSING,
        duration(row.seconds),
        MISSING if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        size(row.memory),
    ]


def _cell(cell: Cell) -> str:
    text = percent(cell.value)
    if cell.best:
        text = f"**{text}**"
    return text + ("≈" if cell.tied else "") + ("°" if cell.no_train else "")


def _mean_cell(cell: Cell) -> str:
    spread = "" if cell.sd is None else f" ± {100 * cell.sd:.1f}"
    return _cell(cell) + spread + span(cell.estimate)


def _notes(table: Table, protocol: str) -> Iterator[str]:
    spec = table.spec
    headlines: dict[str, list[str]] = {}
    for task, name in table.headlines.items():
        headlines.setdefault(name, []).append(escape(task))
    yield f"Protocol **{escape(protocol)}**, in percent: " + "; ".join(
        f"{escape(name)} of {', '.join(tasks)}" for name, tasks in headlines.items()
    )
    left_out = [escape(task) for task in table.tasks if task not in table.mean_of]
    yield f"The mean is over {len(table.mean_of)} tasks: {', '.join(map(escape, table.mean_of)) or MISSING}" + (
        f"; without {', '.join(left_out)} (too few test rows)" if left_out else ""
    )
    data = ", ".join(f"{escape(k)} {escape(v)[:12]}" for k, v in spec.data.fingerprints.items())
    model = "none" if spec.model is None else f"{escape(spec.model.label)} ({escape(spec.model.fingerprint)[:12]})"
    yield f"Data: {escape(spec.data.label)}" + (f" ({data})" if data else "") + f"; base model: {model}"
    yield (
        "± is the standard deviation over seeds; in brackets 95 % intervals of a bootstrap over seeds and test rows "
        "(over test rows alone with one seed)"
    )
    yield from _signs(table)
    yield from _unparsed(table)
    yield from (escape(words) for words in verdicts(table))
    yield from (escape(transfer_in_words(*found)) for found in table.transfers)


def _signs(table: Table) -> Iterator[str]:
    cells = [cell for row in table.rows for cell in (row.mean, *row.cells.values())]
    if any(cell.best for cell in cells):
        yield "**bold**: the best trained row of a column; ≈ not shown to differ from it (95 % interval of each alone)"
    if any(cell.no_train for cell in cells):
        yield "° no training rows of this task"
    for kind, words in ((Kind.TRIVIAL, "answers without a language model"), (Kind.UNTRAINED, "is not trained")):
        if any(row.kind is kind for row in table.rows):
            yield f"{_SIGNS[kind]} {words}: the floor, not ranked"
    if any(row.delta is not None for row in table.rows):
        yield "Δ: mean of an ablation minus that of its method above it"
    if any(LIMITED in row.flags for row in table.rows):
        yield "limited: trained or evaluated on some of the rows, not ranked"


def _unparsed(table: Table) -> Iterator[str]:
    found = []
    for row in table.rows:
        worst = max(row.unparsed, key=lambda task: row.unparsed[task], default=None)
        if worst is not None and row.unparsed[worst] >= _MANY_UNPARSED:
            found.append(f"{escape(row.label)} up to {percent(row.unparsed[worst])} % ({escape(worst)})")
    yield "Answers without the task's format: " + ("; ".join(found) if found else "fewer than 1 % everywhere")
