"""Reading predictions of other programs, and matching them to the examples of a gold file by id or by order."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.errors import DataError, nearest
from harness.json_lines import quoted, read_json_lines

LOG: Final = logging.getLogger(__name__)
_IDS: Final = ("sample_id", "id")
_TEXTS: Final = ("target", "predict", "prediction", "response")
_PLAIN_TEXT: Final = "text"  # in files of other columns it is often the question, so it comes last
_GOLDS: Final = ("label", "labels", "gold")
_TASKS: Final = ("task_dataset", "task", "kind")
_PARSED: Final = re.compile(r'\ufeff?\s*\{\s*"([^"]+)"\s*:\s*\[\s*\{\s*"(?:sample_id|id|answer)"')
_HEAD: Final = 4096  # bytes


@dataclass(frozen=True, kw_only=True)
class PredictionLine:
    """One line of a file of predictions. number: from 1. id, task, gold: None if the line does not have them."""

    number: int
    text: str
    id: str | None
    task: str | None
    gold: str | None


@dataclass(frozen=True, kw_only=True)
class GoldExample:
    """One example of the gold file, whether or not it is scored. asked: its task is one of those to score."""

    id: str
    task: str
    target: str
    asked: bool


def read_lines(path: Path) -> list[PredictionLine]:
    """All lines of a file of predictions.

    The prediction is in ``target``, ``predict``, ``prediction`` or ``response``, or in ``text`` if the line has none of
    these.

    Raises: DataError naming the line, for a file that is not JSON lines or is empty, and for a line without a
        prediction or with two.
    """
    _refuse_parsed(path)
    return [_line(row, number, f"{path}, line {number}") for number, row in read_json_lines(path, {})]


def _refuse_parsed(path: Path) -> None:
    """Refuse one object of answers by task, which scripts of competitions make from the generated texts."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        found = _PARSED.match(file.read(_HEAD).decode("utf-8", "replace"))
    if found is not None:
        raise DataError(
            f"{path}: this is one object with a list of parsed answers for each task ({quoted(found[1])}, …), not the "
            "generated texts, which harness score parses itself. Give the file that the answers were parsed from: JSON "
            "lines with sample_id and target"
        )


def _line(row: Mapping[str, Any], number: int, where: str) -> PredictionLine:
    key = next((row[c] for c in _IDS if isinstance(row.get(c), str | int)), None)
    found = [c for c in _TEXTS if c in row] or [c for c in (_PLAIN_TEXT,) if c in row]
    if not found:
        columns = ", ".join(quoted(c, 30) for c in list(row)[:12])
        raise DataError(
            f"{where}: no prediction, which is read from one of {', '.join((*_TEXTS, _PLAIN_TEXT))} (the line has "
            f"{columns or 'no columns'}). Rename the column of the predictions to 'target'"
        )
    if len(found) > 1:
        raise DataError(
            f"{where}: {' and '.join(map(repr, found))} can both be the prediction. Remove the one that is not it"
        )
    text = row[found[0]]
    if not isinstance(text, str):
        of = "" if key is None else f", example {str(key)!r}"
        raise DataError(f"{where}{of}: {found[0]!r} must be the prediction, a text, not {quoted(text)}")
    return PredictionLine(
        number=number,
        text=text,
        id=None if key is None else str(key),
        task=next((row[c] for c in _TASKS if isinstance(row.get(c), str)), None),
        gold=next((row[c] for c in _GOLDS if isinstance(row.get(c), str)), None),
    )


def by_id(lines: Sequence[PredictionLine], examples: Sequence[GoldExample], path: Path, gold: Path) -> dict[str, str]:
    """The predictions by the ids of their examples. path, gold: the files, for errors.

    Raises: DataError naming the line, for a line without id, and an unknown or repeated id.
    """
    known = {e.id for e in examples}
    found: dict[str, str] = {}
    for line in lines:
        where = f"{path}, line {line.number}"
        if line.id is None:
            raise DataError(
                f"{where}: no sample_id, which matches a prediction to its example. Copy it from the gold file; or, if "
                "the predictions are complete and in the order of the gold file, add --by-order"
            )
        if line.id not in known:
            raise DataError(
                f"{where}: {gold} has no example {line.id!r}.{nearest(line.id, known)} Give files of the same split."
            )
        if line.id in found:
            raise DataError(f"{where}: a second prediction for example {line.id!r}. Keep one of them.")
        found[line.id] = line.text
    return found


def by_order(
    lines: Sequence[PredictionLine], examples: Sequence[GoldExample], path: Path, gold: Path
) -> dict[str, str]:
    """The predictions by the ids of their examples, which are those of the gold file in its order.

    If every line names its task, each task has its own order. Otherwise the file must have as many lines as the gold
    file, or as many as it has of the tasks that were asked for. Lines that have their own gold must agree with it.

    Raises: DataError if the numbers do not fit, or most of the lines' own golds are those of other examples.
    """
    pairs = _pairs(lines, examples, path, gold)
    given = [(line, e) for line, e in pairs if line.gold is not None and e.target.strip()]
    other = [(line, e) for line, e in given if "".join((line.gold or "").split()) != "".join(e.target.split())]
    if other:
        line, example = other[0]
        message = (
            f"{path}, line {line.number}: the line's own gold is {quoted(line.gold)}, but example {example.id!r} of "
            f"{gold} has {quoted(example.target)} ({len(other)} of {len(given)} lines differ)"
        )
        if 2 * len(other) > len(given):
            raise DataError(f"{message}. The predictions are not in the order of the gold file")
        LOG.warning("%s", message)
    return {example.id: line.text for line, example in pairs}


def _pairs(
    lines: Sequence[PredictionLine], examples: Sequence[GoldExample], path: Path, gold: Path
) -> list[tuple[PredictionLine, GoldExample]]:
    if {line.task for line in lines} <= {e.task for e in examples}:
        pairs: list[tuple[PredictionLine, GoldExample]] = []
        for task in dict.fromkeys(e.task for e in examples):
            of_task, golds = [x for x in lines if x.task == task], [e for e in examples if e.task == task]
            if of_task and len(of_task) != len(golds):
                raise DataError(
                    f"{path}: {len(of_task)} predictions of {task}, but {gold} has {len(golds)} examples of it. "
                    "Predictions can be matched by order only if none is missing"
                )
            if of_task:  # a task without a single prediction has no score
                pairs += zip(of_task, golds, strict=True)
        return pairs
    asked = [e for e in examples if e.asked]
    fitting = next((of for of in (examples, asked) if len(of) == len(lines)), None)
    if fitting is None:
        counts = ", ".join(f"{task} {n}" for task, n in Counter(e.task for e in examples).items())
        raise DataError(
            f"{path}: {len(lines)} predictions, but {gold} has {len(examples)} examples ({counts}). Predictions can be "
            "matched by order only if none is missing; name the tasks that were predicted with --tasks"
        )
    return list(zip(lines, fitting, strict=True))
