"""Reports of toy runs: the board is built from ``toy_runs``, the examples from the same predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

from toy_runs import ToyRuns, Toys, answer

from harness.leaderboard.build import build_leaderboard
from harness.leaderboard.report.examples import TableExamples, TaskBlock, make_block
from harness.leaderboard.report.make import ReportOptions, assemble
from harness.leaderboard.tables import Leaderboard
from harness.store.record import Prediction
from harness.store.run_directory import RunDirectory
from harness.task import Example

Flags = Mapping[str, Sequence[Sequence[bool]]]  # by method, for each seed the examples of "sky" that are correct


def toy_board(folder: Path, flags: Flags) -> Leaderboard:
    """A board of one task, "sky", with a run for each method and seed."""
    runs = [run for method in flags for run in runs_of(folder, flags, method)]
    return build_leaderboard(runs, "toys", "official")


def runs_of(folder: Path, flags: Flags, method: str) -> list[RunDirectory]:
    make = ToyRuns(folder / "runs")
    return [make(method, {"sky": list(right)}, seed=seed) for seed, right in enumerate(flags[method])]


def toy_block(
    board: Leaderboard,
    flags: Flags,
    prompts: Mapping[int, str] = {},
    texts: Mapping[int, str] = {},
    table: int = 0,
) -> TaskBlock:
    """The examples of a table. prompts, texts: other prompts and wrong predictions, by the number of the example."""
    n = len(next(iter(flags.values()))[0])
    examples = [Example(id=f"sky{i}", task="sky", prompt=prompts.get(i, f"sky {i}?"), target="yes") for i in range(n)]
    predictions = []
    for row in board.tables[table].rows:
        for run in row.group.runs:
            right = flags[row.label][run.record.spec.seed]
            predictions.append([_prediction(e, right[i], texts.get(i)) for i, e in enumerate(examples)])
    return make_block(Toys(names=("sky",)).tasks["sky"], examples, predictions)


def toy_html(board: Leaderboard, block: TaskBlock, **options: object) -> str:
    found = TableExamples(blocks=(block,), reason=None)
    return assemble(board, [found], ReportOptions(**options))  # type: ignore[arg-type]


def _prediction(example: Example, right: bool, text: str | None) -> Prediction:
    made = answer(example, right)
    return made if right or text is None else made.model_copy(update={"text": text})


class Parsed(HTMLParser):
    """What an HTML file consists of: tags with attributes, and the text of each kind of tag."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data
