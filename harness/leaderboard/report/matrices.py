"""Matrices of tasks by tasks: those that a run has saved, its transfer of weights, and those of files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.errors import DataError, StoreError
from harness.leaderboard.tables import Row
from harness.method import ArtefactKind
from harness.store.artefacts import read_artefacts
from harness.store.run_directory import RunDirectory
from harness.store.transfer import read_transfers

_BASE_MODEL: Final = "base model"
Numbers = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Values by row and column: (rows, columns).

    numbers: what is printed instead of the values. bold: the cells, by index, that are printed in bold.
    """

    caption: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Numbers
    numbers: Numbers | None = None
    bold: frozenset[tuple[int, int]] = frozenset()


def matrices_of(row: Row) -> Iterator[Matrix]:
    """Those of all runs of a row. Raises: StoreError for an artefact that is not a matrix."""
    for run in row.group.runs:
        for name, value in read_artefacts(run.directory.artefacts, ArtefactKind.MATRIX).items():
            file = run.directory.artefacts / f"{name}.json"
            try:
                yield as_matrix(value, name, str(file), f", {run.directory.name}")
            except DataError as error:
                raise StoreError(f"{error}. Delete the file, or write the run again") from error
        yield from _transfers(run.directory, row.group.protocol)


def matrix_of_file(path: Path) -> Matrix:
    """The matrix of a JSON file, in either form of ``as_matrix``. Raises: DataError."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--matrix {path}: not a JSON file ({error}). Give a file with a matrix") from error
    return as_matrix(content, path.stem, f"--matrix {path}")


def as_matrix(content: Any, name: str, where: str, of: str = "") -> Matrix:
    """A matrix from {"rows", "columns", "values"} (and "title", "note"), or from numbers by row and column.

    Args: where: the file, for errors. of: what the caption adds to the title.
    Raises: DataError naming what does not fit.
    """
    if not isinstance(content, Mapping):
        raise DataError(f"{where}: {_EXPECTED}")
    if {"rows", "columns", "values"} <= content.keys():
        rows, columns, values = (content[key] for key in ("rows", "columns", "values"))
    elif content and all(isinstance(line, Mapping) for line in content.values()):
        rows = list(content)
        named = dict.fromkeys(column for line in content.values() for column in line)
        columns = [*(row for row in rows if row in named), *(column for column in named if column not in content)]
        values = [[line.get(column) for column in columns] for line in content.values()]
    else:
        raise DataError(f"{where}: {_EXPECTED}")
    lists = isinstance(rows, list) and isinstance(columns, list) and isinstance(values, list)
    if not lists or len(values) != len(rows) or not all(_fits(line, len(columns)) for line in values):
        raise DataError(f"{where}: 'values' must have a list for each of 'rows' with a number or null for each column")
    note = f": {content['note']}" if isinstance(content.get("note"), str) else ""
    title = content["title"] if isinstance(content.get("title"), str) else name
    return Matrix(
        caption=f"{title}{of}{note}",
        rows=tuple(map(str, rows)),
        columns=tuple(map(str, columns)),
        values=tuple(tuple(line) for line in values),
    )


_EXPECTED: Final = "a matrix is expected: rows, columns and values, or numbers by the names of row and column"


def _fits(line: Any, n: int) -> bool:
    return isinstance(line, list) and len(line) == n and all(_is_number(value) for value in line)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _transfers(run: RunDirectory, protocol: str) -> Iterator[Matrix]:
    """The transfer matrices of a run: scores, with shades for how far each is from that of the task's own weights."""
    for transfer in read_transfers(run):
        if protocol not in transfer.base.root:
            continue
        scores = [
            [transfer.value(protocol, owner, task) for task in transfer.tasks] for owner in (None, *transfer.tasks)
        ]
        own = [transfer.value(protocol, task, task) for task in transfer.tasks]
        yield Matrix(
            caption=f"Transfer of weights, {run.name}: scores in percent; line: the task whose weights are used; "
            "column: the evaluated task; shades: the difference to the column's own weights",
            rows=(_BASE_MODEL, *transfer.tasks),
            columns=transfer.tasks,
            values=tuple(
                tuple(None if v is None or o is None else 100 * (v - o) for v, o in zip(line, own, strict=True))
                for line in scores
            ),
            numbers=tuple(tuple(None if value is None else 100 * value for value in line) for line in scores),
        )
