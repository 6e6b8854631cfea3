"""A leaderboard as Markdown, for people. Names that came from a user, a file or a model are escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from harness.leaderboard.sections import orientation, pictures, sections
from harness.leaderboard.tables import LIMITED, Cell, Kind, Leaderboard, Row, Table
from harness.reporting.markdown import cells, escape, heading, hold, side_by_side
from harness.reporting.numbers import MISSING, count, duration, percent, size
from harness.scoring.groups import difference
from harness.scoring.verdict import points, span, verdict

ONE_PERCENT: Final = 1.0  # PEFT parameters in percent of the base model's: the largest that PromptCBLUE's rule allows
_HASH: Final = re.compile(r"[0-9a-f]{40,64}")
_INDENT: Final = 3 * "&nbsp;"
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
        lines += [*_markdown_table(table), "", *(f"- {note}" for note in _notes(table)), ""]
        lines += [*_tasks(table, board.protocol), "", *_in_words(table), *_costs(table)]
        lines += sections(table, claims)
    lines += [*orientation(board.orientation, board.elsewhere), *pictures(folder, drawn)]
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
    ranked = any(row.rank is not None for row in table.rows)
    head = [*(["#"] if ranked else []), "method", "mean ± sd", "95 % interval"]
    head += [*(["Δ (95 % interval)"] if deltas else []), "seeds", "lr", "training", "no format"]
    yield from heading(list(map(hold, head)))
    for row in table.rows:
        yield cells(_cells(row, ranked=ranked, deltas=deltas))


def _cells(row: Row, *, ranked: bool, deltas: bool) -> list[str]:
    spread = "" if row.mean.sd is None else f" ± {100 * row.mean.sd:.1f}"
    numbers = [
        _cell(row.mean) + spread,
        span(row.mean.estimate).strip(" ()") or MISSING,
        *([MISSING if row.delta is None else points(row.delta)] if deltas else []),
        str(len(row.group.runs)),
        f"{row.group.spec.train.lr:g}" if row.kind is Kind.TRAINED else MISSING,
        _training(row),
        percent(sum(row.unparsed.values()) / len(row.unparsed)) if row.unparsed else MISSING,
    ]
    flags = f" ({', '.join(row.flags)})" if row.flags else ""
    return [*([str(row.rank or MISSING)] if ranked else []), _label(row) + flags, *map(hold, numbers)]


def _training(row: Row) -> str:
    return "reused" if row.reused else duration(row.seconds)


def _costs(table: Table) -> Iterator[str]:
    """What each row keeps in memory and on disk, and how fast it trained."""
    yield from ("### Costs", "")
    head = ["stored", "% of base", "≤ 1 %", "active", "training", "tokens/s", "memory"]
    yield from heading(["method", *map(hold, head)])
    for row in table.rows:
        parameters = row.group.runs[0].record.parameters
        part = parameters.percent
        numbers = [
            count(parameters.stored),
            MISSING if part is None else f"{part:.3g}",
            MISSING if part is None else "yes" if part <= ONE_PERCENT else "no",
            count(parameters.active),
            _training(row),
            MISSING if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
            size(row.memory),
        ]
        yield cells([_label(row), *map(hold, numbers)])
    yield ""
    yield (
        "Parameters stored, also in percent of the base model's (PromptCBLUE's rule: at most 1 %), and active: of one "
        "task's folded LoRA. Training time and tokens a second of one seed; the peak of memory."
    )
    yield ""


def _label(row: Row) -> str:
    return (_INDENT if row.beneath else "") + escape(row.label) + _SIGNS[row.kind]


def _tasks(table: Table, protocol: str) -> Iterator[str]:
    """The headline of each task, and which metric that is."""
    yield from ("### Tasks", "")
    for names in side_by_side(table.tasks):
        yield from heading(["method", "mean", *map(escape, names.values())])
        for row in table.rows:
            yield cells([_label(row), _cell(row.mean), *(_cell(row.cells[task]) for task in names)])
        yield ""
    headlines: dict[str, list[str]] = {}
    for task, name in table.headlines.items():
        headlines.setdefault(name, []).append(escape(task))
    yield f"Percent, protocol **{escape(protocol)}**: " + "; ".join(
        f"{escape(name)} of {', '.join(tasks)}" for name, tasks in headlines.items()
    )


def _in_words(table: Table) -> Iterator[str]:
    found = verdicts(table)
    if found:
        yield from ("### Verdicts", "", *(f"- {escape(words)}" for words in found), "")


def _cell(cell: Cell) -> str:
    text = percent(cell.value)
    if cell.best:
        text = f"**{text}**"
    return text + ("≈" if cell.tied else "") + ("°" if cell.no_train else "")


def _notes(table: Table) -> Iterator[str]:
    spec = table.spec
    left_out = [escape(task) for task in table.tasks if task not in table.mean_of]
    yield f"The mean is over {len(table.mean_of)} tasks: {', '.join(map(escape, table.mean_of)) or MISSING}" + (
        f"; without {', '.join(left_out)} (too few test rows)" if left_out else ""
    )
    data = ", ".join(f"{escape(k)} {escape(_short(v))}" for k, v in spec.data.fingerprints.items())
    model = "none" if spec.model is None else f"{escape(spec.model.label)} ({escape(spec.model.fingerprint)[:12]})"
    yield f"Data: {escape(spec.data.label)}" + (f" ({data})" if data else "") + f"; base model: {model}"
    yield (
        "In percent. ±: standard deviation over seeds; intervals: bootstrap over seeds and test rows (over test rows "
        "alone with one seed; two or three seeds make them wide)"
    )
    yield "training: time of one seed; no format: answers that are not in the task's format, the mean over tasks"
    yield from _signs(table)


def _short(part: str) -> str:
    """A hash or a commit by its first digits, anything else as it is."""
    return part[:12] if _HASH.fullmatch(part) else part


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
        yield "Δ: points of the mean, an ablation minus its method above it"
    if any(row.reused for row in table.rows):
        yield "reused: another row's training of the same stages was taken over, and its time stands there"
    if any(LIMITED in row.flags for row in table.rows):
        yield "limited: trained or evaluated on some of the rows, not ranked"
