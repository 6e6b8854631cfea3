"""A file of predictions from elsewhere: JSON lines with an id and the model's text in ``target``."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Final

from harness.data.rows import group
from harness.errors import DataError, nearest
from harness.scoring.score import MIN_ROWS, Scored, _collect, _score_task, _withheld
from harness.task import Suite

_ID_COLUMNS: Final = ("sample_id", "id")


def read_texts(path: Path, known: Collection[str], gold: Path) -> dict[str, str]:
    """The model's text by id of its test row.

    Args: known: the ids of the gold file; gold: named in errors.
    Raises: DataError naming the line for broken JSON, an id that is unknown or there twice, or one without a text.
    """
    texts: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                key, text = _prediction(line, where)
                if key not in known:
                    raise DataError(f"{where}: no row {key!r} in {gold}.{nearest(key, known)} Are both of one split?")
                if key in texts:
                    raise DataError(f"{where}: a second prediction of row {key!r}. Keep one of them.")
                texts[key] = text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Give a file of JSON lines in UTF-8.") from error
    return texts


def _prediction(line: str, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: broken JSON ({error}). Each line must hold one whole JSON object.") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: not an object but {type(row).__name__}. Each line must be an object with a target.")
    key = next((row[c] for c in _ID_COLUMNS if isinstance(row.get(c), str | int)), None)
    if key is None:
        raise DataError(f"{where}: no sample_id, by which predictions find their rows. Copy it from the gold file.")
    text = row.get("target")
    if not isinstance(text, str):
        raise DataError(f"{where}, row {key!r}: 'target' must be the model's text, not {text!r:.60}.")
    return str(key), text


def score_file(suite: Suite, predictions: Path, gold: Path, *, split: str = "test", min_rows: int = MIN_ROWS) -> Scored:
    """Score a file of predictions against a gold file, both in the suite's own form, matched by ``sample_id``.

    Args: predictions: JSON lines with ``sample_id`` (or ``id``) and the model's text in ``target``; other columns are
        passed over.
    Raises: DataError naming line and id for predictions that are unknown, twice there or without id or text.
    """
    rows = group(suite.read(str(gold), split), split, tuple(suite.tasks))
    examples = {task: rows.of(task) for task, n in rows.counts.items() if n > 0}
    ids = {e.id for of_task in examples.values() for e in of_task}
    if all(_withheld(of_task) for of_task in examples.values()):
        raise DataError(
            f"{gold} holds no targets: it is a test set whose answers are withheld. Give a file with answers."
        )
    texts = read_texts(predictions, ids, gold)
    results, notes = {}, []
    for task, of_task in examples.items():
        found = [texts.get(e.id) for e in of_task]
        absent = [e.id for e, text in zip(of_task, found, strict=True) if text is None]
        if absent:
            some = ", ".join([*(repr(i) for i in absent[:3]), *(["…"] if len(absent) > 3 else [])])
            notes.append(f"{task}: {len(absent)} of {len(found)} rows have no prediction in {predictions} ({some})")
        results[task] = _score_task(suite.tasks[task], of_task, found, n_train=None, n_cut=None)
    return _collect(suite, examples, results, min_rows, notes)
