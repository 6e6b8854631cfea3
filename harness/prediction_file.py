"""A file of predictions from elsewhere: JSON lines with an id and the model's text in ``target``."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Final

from harness.errors import DataError, nearest

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
