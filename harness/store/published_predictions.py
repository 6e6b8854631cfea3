"""The predictions of a published record: all tasks in one compressed file, or their hashes.

``predictions.jsonl.gz`` has a ``TaskPrediction`` on each line. If the data may not be published, the record has
``prediction_hashes.jsonl.gz`` in its place, with a ``PredictionHash`` on each line. ``zcat`` prints both.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from harness.errors import StoreError
from harness.store.files import write_atomic
from harness.store.record import Prediction, PredictionHash, TaskPrediction, text_hash

FILE: Final = "predictions.jsonl.gz"
HASHES: Final = "prediction_hashes.jsonl.gz"


def write_predictions(folder: Path, predictions: Mapping[str, Sequence[Prediction]]) -> None:
    """Write the predictions of a record, by task."""
    lines = (
        TaskPrediction(task=task, **prediction.model_dump())
        for task, of_task in predictions.items()
        for prediction in of_task
    )
    _write(folder / FILE, lines)


def write_hashes(folder: Path, predictions: Mapping[str, Sequence[Prediction]]) -> None:
    """Write the hashes of a record's predictions, by task: whoever has the predictions can compare them."""
    lines = (
        PredictionHash(
            task=task,
            id=prediction.id,
            prompt_hash=prediction.prompt_hash,
            target_hash=prediction.target_hash,
            text_hash=text_hash(prediction.text),
        )
        for task, of_task in predictions.items()
        for prediction in of_task
    )
    _write(folder / HASHES, lines)


def read_predictions(folder: Path, tasks: Iterable[str]) -> dict[str, list[Prediction]]:
    """The predictions of a record, by task, in the order in which they were written; a task may have none.

    Raises: StoreError for a damaged file.
    """
    path = folder / FILE
    found: dict[str, list[Prediction]] = {task: [] for task in tasks}
    try:
        lines = [TaskPrediction.model_validate_json(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    except (OSError, EOFError, zlib.error, ValidationError) as error:
        raise StoreError(
            f"{path} is damaged ({type(error).__name__}). Restore the file from a copy, or publish the run again."
        ) from error
    for line in lines:
        found.setdefault(line.task, []).append(line)
    return found


def _write(path: Path, lines: Iterable[TaskPrediction | PredictionHash]) -> None:
    content = "".join(f"{line.model_dump_json()}\n" for line in lines).encode()
    write_atomic(path, gzip.compress(content, mtime=0))  # Without a time, equal predictions are equal files.
