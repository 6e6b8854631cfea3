"""What a report prints of the training and structure of a row: losses, gates, skills, matrices."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import DataError, StoreError
from harness.leaderboard.plots.digest import read_digest
from harness.leaderboard.tables import Row
from harness.method import ArtefactKind
from harness.store.artefacts import read_artefacts
from harness.store.run_directory import RunDirectory
from harness.store.transfer import read_transfers

Json = Any
_BASE_MODEL = "base model"


def training_json(row: Row, protocol: str) -> dict[str, Json]:
    """Losses of every seed; the losses of each task, gates, skills and matrices of the first seed."""
    digests = [read_digest(run.directory) for run in row.group.runs]
    first = digests[0]
    return {
        "losses": [list(digest.losses) for digest in digests],
        "task_losses": {task: list(values) for task, values in first.task_losses.items()},
        "gates": {task: [list(block) for block in blocks] for task, blocks in first.gates.items()},
        "skills": {task: list(values) for task, values in first.skills.items()},
        "matrices": [matrix for run in row.group.runs for matrix in _matrices(run.directory, protocol)],
    }


def matrix_of_file(path: Path) -> dict[str, Json]:
    """A matrix of a JSON file, in either form of ``as_matrix``. Raises: DataError."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a JSON file ({error}). Give a file with a matrix") from error
    return {"name": path.stem, **as_matrix(content, str(path))}


def as_matrix(content: Json, where: str) -> dict[str, Json]:
    """{"rows", "columns", "values"} of such an object, or of numbers by the names of their rows and columns.

    Raises: DataError naming what does not fit.
    """
    if isinstance(content, Mapping) and {"rows", "columns", "values"} <= content.keys():
        rows, columns, values = (content[key] for key in ("rows", "columns", "values"))
        texts = {key: str(content[key]) for key in ("title", "note") if key in content}
    elif isinstance(content, Mapping) and content and all(isinstance(line, Mapping) for line in content.values()):
        rows = list(content)
        columns = list(dict.fromkeys(name for line in content.values() for name in line))
        values = [[line.get(name) for name in columns] for line in content.values()]
        texts = {}
    else:
        raise DataError(
            f"{where}: a matrix is expected: rows, columns and values, or numbers by the names of row and column"
        )
    fits = len(values) == len(rows) and all(
        isinstance(line, list) and len(line) == len(columns) and all(_is_number(x) for x in line) for line in values
    )
    if not fits:
        raise DataError(f"{where}: 'values' must have {len(rows)} lists of {len(columns)} numbers or null")
    return {"rows": list(map(str, rows)), "columns": list(map(str, columns)), "values": values, **texts}


def _is_number(value: Json) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _matrices(run: RunDirectory, protocol: str) -> Iterator[dict[str, Json]]:
    """The matrices that the run has saved, and its transfer matrices as gains over each task's own weights."""
    for name, value in read_artefacts(run.artefacts, ArtefactKind.MATRIX).items():
        try:
            yield {"name": name, "run": run.name, **as_matrix(value, f"{run.artefacts / name}.json")}
        except DataError as error:
            raise StoreError(f"{error}. Delete the file, or the run's directory, and run it again") from error
    for transfer in read_transfers(run):
        owners = [None, *transfer.tasks]
        scores = [[transfer.value(protocol, owner, task) for task in transfer.tasks] for owner in owners]
        own = [transfer.value(protocol, task, task) for task in transfer.tasks]
        yield {
            "name": "transfer",
            "run": run.name,
            "title": "Transfer of weights",
            "note": "each line: the task whose weights are used; each column: the evaluated task; colours: percentage "
            "points over the task's own weights; numbers: scores in percent",
            "rows": [_BASE_MODEL, *transfer.tasks],
            "columns": list(transfer.tasks),
            "values": [
                [None if v is None or o is None else 100 * (v - o) for v, o in zip(line, own, strict=True)]
                for line in scores
            ],
            "numbers": [[None if value is None else 100 * value for value in line] for line in scores],
        }
