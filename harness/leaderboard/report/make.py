"""A report of a leaderboard: its data, what of them fits into the file, and whether a file is still right."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from harness.errors import HarnessError, UsageError
from harness.leaderboard.build import build_leaderboard
from harness.leaderboard.files import Board, make_board
from harness.leaderboard.report.board import board_json, missing_values
from harness.leaderboard.report.examples import TableExamples, TaskBlock, table_examples
from harness.leaderboard.report.matrices import matrix_of_file
from harness.leaderboard.report.mcnemar import mcnemar_values
from harness.leaderboard.report.page import Page, blocks_of, pack, render, without_blocks
from harness.leaderboard.report.text import heat, orientation_text, table_text
from harness.leaderboard.tables import Leaderboard, Table
from harness.leaderboard.titles import titles
from harness.reporting.numbers import number
from harness.store.files import write_atomic
from harness.store.run_directory import RunDirectory, open_run

LOG: Final = logging.getLogger(__name__)
LIMIT: Final = 9_900_000  # bytes of the data; with the page the file has less than 10 MB
_MARGIN: Final = 0.97  # A smaller part compresses a little worse than its share.
Json = Any


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What a report has besides the board.

    data: the current location of the data, if they have moved. examples: whether it has the examples. everything:
    also those that make the data larger than ``limit`` bytes. matrices: JSON files with further matrices.
    """

    data: str | None = None
    examples: bool = True
    everything: bool = False
    limit: int = LIMIT
    matrices: tuple[Path, ...] = ()


def board_for_report(names: Sequence[str], runs: Path, protocol: str | None) -> Leaderboard:
    """The leaderboard of a suite or of a leaderboard's name, or of the given runs.

    Args: names: one name, or directories of runs. runs: the folder of the runs of a name.
    Raises: UsageError for runs of several suites, and for what is neither a name nor runs.
    """
    are_runs = [(Path(name) / "spec.json").exists() for name in names]
    if len(names) == 1 and not are_runs[0]:
        board: Board = make_board(names[0], runs, protocol, own=True)
        return board.content
    opened = [open_run(Path(name)) for name in names]  # Raises a StoreError that names the folder without a run.
    specs = [spec for run in opened if (spec := run.spec()) is not None]
    suites = list(dict.fromkeys(spec.suite.name for spec in specs))
    if len(suites) != 1:
        raise UsageError(f"the runs are of several suites ({', '.join(suites)}). Give the runs of one suite")
    return build_leaderboard(opened, suites[0], protocol or _first_protocol(opened))


def make_report(board: Leaderboard, options: ReportOptions) -> str:
    """The HTML of a report. Raises: DataError for a matrix that is not one, and for predictions of other examples."""
    return assemble(board, [_examples(table, options) for table in board.tables], options)


def assemble(board: Leaderboard, examples: Sequence[TableExamples], options: ReportOptions) -> str:
    """The HTML of a board with the examples of each of its tables."""
    content = board_json(board)
    blocks = {f"t{t}-{k}": block for t, of_table in enumerate(examples) for k, block in enumerate(of_table.blocks)}
    content["mcnemar"] = mcnemar_values(blocks.values())
    packed = _fitting(content, blocks, None if options.everything else options.limit)
    title = f"{board.suite}, protocol {board.protocol}"
    return render(Page(title=title, text=_text(board, examples, options), blocks=packed))


def write_report(path: Path, html: str) -> None:
    """Write the file. Raises: HarnessError if its folder is not there."""
    if not path.parent.is_dir():
        raise HarnessError(f"{path}: the folder {path.parent} does not exist. Create it, or give another --out")
    write_atomic(path, html.encode())


def check_report(path: Path, html: str) -> None:
    """Compare a file with the report of the runs as they are now. Raises: HarnessError if they differ."""
    found = path.read_text(encoding="utf-8") if path.exists() else None
    same = found == html or (
        found is not None and without_blocks(found) == without_blocks(html) and blocks_of(found) == blocks_of(html)
    )
    if not same:
        raise HarnessError(
            f"{path} differs from the report of the runs. Write it again: the same command without --check"
        )


def _first_protocol(runs: Sequence[RunDirectory]) -> str:
    names = [name for run in runs if (scores := run.scores()) is not None for name in scores.root]
    if not names:
        raise HarnessError(f"none of the runs has scores. Compute them: harness score {runs[0].path}")
    return names[0]


def _examples(table: Table, options: ReportOptions) -> TableExamples:
    if not options.examples:
        return TableExamples(blocks=(), reason="the report was written with --no-examples")
    return table_examples(table, options.data)


def _text(board: Leaderboard, examples: Sequence[TableExamples], options: ReportOptions) -> dict[str, Any]:
    """What the page prints without its script; the matrices of files are those of the first table."""
    tables = []
    for table, title, found in zip(board.tables, titles(board.tables), examples, strict=True):
        missing = {row.label: missing_values(row, table) for row in table.rows}
        text = table_text(table, title, missing)
        text |= {"no_examples": found.reason, "left_out": found.left_out}
        tables.append(text)
    if tables:
        tables[0]["matrices"] += [heat(matrix_of_file(path)) for path in options.matrices]
    return {
        "tables": tables,
        "orientation": orientation_text(board),
        "unfinished": [f"{run.name}: {run.reason}" for run in board.unfinished],
        "version": version("mtlora-harness"),
    }


def _fitting(content: dict[str, Json], blocks: Mapping[str, TaskBlock], limit: int | None) -> dict[str, str]:
    """The packed blocks, with the texts of as many examples of each task as the limit on their size allows."""
    share = 1.0
    while True:
        packed = {name: pack(block.keep(_n_kept(block, share))) for name, block in blocks.items()}
        content["kept"] = {name: _kept(block, share) for name, block in blocks.items()}
        packed = {"board": pack(content), **packed}
        n_bytes = sum(map(len, packed.values()))
        if limit is None or n_bytes <= limit or share == 0.0:
            break
        share = 0.0 if share < 0.001 else share * min(_MARGIN, _MARGIN * limit / n_bytes)
    if limit is not None and share < 1.0:
        kept, every = (sum(pair[i] for pair in content["kept"].values()) for i in (0, 1))
        LOG.warning(
            "the report has the texts of %s of %s examples, to be smaller than %s MB; scores are those of all. For all "
            "texts: --all",
            *(number(kept), number(every), number(limit / 1e6)),
        )
    return packed


def _kept(block: TaskBlock, share: float) -> list[Any]:
    """[kept examples, all examples, task, a sentence about those that are not kept]."""
    n, every = _n_kept(block, share), len(block.order)
    words = (
        ""
        if n == every
        else f"This file has the texts of {number(n)} of them, first those on which runs differ (harness report --all "
        "keeps all). Counts and scores are those of all; the search reads only these texts."
    )
    return [n, every, block.task, words]


def _n_kept(block: TaskBlock, share: float) -> int:
    return int(len(block.order) * share)
