"""Scores of predictions from other programs, against a gold file of the suite."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from harness.data.omissions import task_names
from harness.data.splits import SplitExamples, Use, load_split
from harness.errors import DataError
from harness.scoring.prediction_lines import GoldExample, by_id, by_order, read_lines
from harness.scoring.score import Scored, collect, score_task, withheld
from harness.task import MIN_EXAMPLES, Example, Suite

LOG: Final = logging.getLogger(__name__)


def score_file(
    suite: Suite,
    predictions: Path,
    gold: Path,
    *,
    tasks: Sequence[str] | None = None,
    in_order: bool = False,
    min_examples: int = MIN_EXAMPLES,
) -> Scored:
    """Score a file of predictions against a gold file of the suite.

    Args:
        predictions: JSON lines with ``sample_id`` (or ``id``) and the prediction in ``target``, ``predict``,
            ``prediction``, ``response`` or ``text``; other columns are ignored.
        tasks: the tasks to score; None for all of the suite's, where a gold line of another task is an error.
        in_order: the lines have no ids, and are in the order of the gold file.

    Raises: DataError naming line and id, for predictions that are unknown, repeated, or without id or text, and for
        numbers of predictions that do not fit ``in_order``.
    """
    names = tuple(suite.tasks) if tasks is None else tuple(tasks)
    split = load_split(suite, str(gold), "test", names, use=Use(strict=tasks is None, withheld=True)).with_examples()
    examples = {task: split.of(task) for task in split.by_task}
    if all(withheld(of_task) for of_task in examples.values()):
        raise DataError(
            f"{gold} has no targets: it is a test set whose targets are withheld. Give a file with targets."
        )
    lines, golds = read_lines(predictions), _all_golds(split, names)
    texts = (by_order if in_order else by_id)(lines, golds, predictions, gold)
    _remark_copy(examples, texts, predictions)
    results = {}
    for task, of_task in examples.items():
        given = [texts.get(e.id) for e in of_task]
        absent = [e.id for e, text in zip(of_task, given, strict=True) if text is None]
        if absent:
            some = ", ".join([*(repr(i) for i in absent[:3]), *(["…"] if len(absent) > 3 else [])])
            LOG.warning(
                "%s: %d of %d examples have no prediction in %s (%s), so it has no score",
                *(task, len(absent), len(given), predictions, some),
            )
        results[task] = score_task(suite.tasks[task], of_task, given, n_train=None, n_truncated=None)
    return collect(suite, examples, results, min_examples)


def _all_golds(split: SplitExamples, tasks: Sequence[str]) -> list[GoldExample]:
    """Every example of the file, in its order: a prediction may also be for one that is not scored."""
    columns = split.dataset.with_format(None)
    return [
        GoldExample(id=str(i), task=str(task), target=target or "", asked=task in tasks)
        for i, task, target in zip(columns["id"][:], task_names(split.dataset), columns["target"][:], strict=True)
    ]


def _remark_copy(examples: Mapping[str, Sequence[Example]], texts: Mapping[str, str], path: Path) -> None:
    """Warn if every prediction is its own gold, which a model hardly ever achieves."""
    pairs = [(texts[e.id], e.target) for of_task in examples.values() for e in of_task if e.id in texts]
    if pairs and all(text.strip() == target.strip() for text, target in pairs):
        LOG.warning("all %d predictions equal their targets: is %s a copy of the gold file?", len(pairs), path)
