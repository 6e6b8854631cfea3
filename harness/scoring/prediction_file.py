"""Predictions from other programs: a file of JSON lines with an id and the prediction in ``target``."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Final

from harness.data.splits import load_split
from harness.errors import DataError, nearest
from harness.scoring.score import Scored, collect, score_task, withheld
from harness.task import MIN_EXAMPLES, Suite

LOG = logging.getLogger(__name__)
_ID_COLUMNS: Final = ("sample_id", "id")


def read_predictions(path: Path, known: Collection[str], gold: Path) -> dict[str, str]:
    """The predictions by the ids of their examples.

    Args: known: the ids of the gold file. gold: its path, for errors.
    Raises: DataError naming the line, for broken JSON, an unknown or repeated id, or a line without a prediction.
    """
    predictions: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                key, text = _prediction(line, where)
                if key not in known:
                    raise DataError(
                        f"{where}: {gold} has no example {key!r}.{nearest(key, known)} Give files of the same split."
                    )
                if key in predictions:
                    raise DataError(f"{where}: a second prediction for example {key!r}. Keep one of them.")
                predictions[key] = text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Give a file of JSON lines in UTF-8.") from error
    return predictions


def _prediction(line: str, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: broken JSON ({error}). Each line must hold one whole JSON object.") from None
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: not an object but {type(row).__name__}. Each line must be an object with sample_id and target."
        )
    key = next((row[c] for c in _ID_COLUMNS if isinstance(row.get(c), str | int)), None)
    if key is None:
        raise DataError(
            f"{where}: no sample_id, which matches a prediction to its example. Copy it from the gold file."
        )
    text = row.get("target")
    if not isinstance(text, str):
        raise DataError(f"{where}, example {key!r}: 'target' must be the prediction, a string, not {text!r:.60}.")
    return str(key), text


def score_file(suite: Suite, predictions: Path, gold: Path, *, min_examples: int = MIN_EXAMPLES) -> Scored:
    """Score a file of predictions against a gold file of the suite, matched by ``sample_id``.

    Args: predictions: JSON lines with ``sample_id`` (or ``id``) and the prediction in ``target``; other columns are
        ignored.
    Raises: DataError naming line and id, for predictions that are unknown, repeated, or without id or text.
    """
    split_examples = load_split(suite, str(gold), "test", tuple(suite.tasks)).with_examples()
    examples = {task: split_examples.of(task) for task in split_examples.by_task}
    ids = {e.id for of_task in examples.values() for e in of_task}
    if all(withheld(of_task) for of_task in examples.values()):
        raise DataError(
            f"{gold} has no targets: it is a test set whose targets are withheld. Give a file with targets."
        )
    by_id = read_predictions(predictions, ids, gold)
    results = {}
    for task, of_task in examples.items():
        given = [by_id.get(e.id) for e in of_task]
        absent = [e.id for e, text in zip(of_task, given, strict=True) if text is None]
        if absent:
            some = ", ".join([*(repr(i) for i in absent[:3]), *(["…"] if len(absent) > 3 else [])])
            LOG.warning(
                "%s: %d of %d examples have no prediction in %s (%s), so it has no score",
                *(task, len(absent), len(given), predictions, some),
            )
        results[task] = score_task(suite.tasks[task], of_task, given, n_train=None, n_truncated=None)
    return collect(suite, examples, results, min_examples)
