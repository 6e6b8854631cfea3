"""Before a run, and in ``harness validate``: whether the tokenizer can write the targets at all."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from harness.data.encoding import draw
from harness.data.round_trip import in_words, no_answer_survives
from harness.data.splits import SplitExamples, group
from harness.data.validation_report import ValidationReport
from harness.errors import ModelError
from harness.pipeline.prepare import Base
from harness.pipeline.resolve import Resolved
from harness.scoring.round_trip import round_trips
from harness.task import Example, Suite

LOG: Final = logging.getLogger(__name__)

_SAMPLE: Final = 200
"""Targets of each task that are encoded and decoded."""


def check_round_trip(resolved: Resolved, base: Base | None, train: SplitExamples | None) -> None:
    """Warn for each group of tasks in which a perfect model would score less than the targets themselves.

    A warning does not stop a run: other tasks can be scored, and methods are compared under the same loss.

    Raises: ModelError if a perfect model would score 0 in every task.
    """
    if base is None:
        return
    splits = [resolved.evaluated, *([train] if train is not None else [])]
    found = round_trips(resolved.suite.tasks, _samples(splits, list(resolved.evaluated.by_task)), base.loaded.tokenizer)
    lines = in_words(found)
    if no_answer_survives(found):
        raise ModelError(f"no prediction can be correct: {'; '.join(lines)}")
    for line in lines:
        LOG.warning("%s", line)


def with_round_trips(report: ValidationReport, suite: Suite, source: str, tokenizer: Any) -> ValidationReport:
    """The report with the round trips of every task's targets, from the first of test, dev and train that has them."""
    readable = {task.split for task in report.tasks}
    names = list(suite.tasks)
    splits = [group(suite.read(source, s), s, names) for s in ("test", "dev", "train") if s in readable]
    found = round_trips(suite.tasks, _samples(splits, names), tokenizer)
    return dataclasses.replace(report, round_trips=tuple(found))


def _samples(splits: Sequence[SplitExamples], tasks: Sequence[str]) -> Mapping[str, Sequence[Example]]:
    """For each task examples with a target, of the first split that has any of them in its sample."""
    samples = {}
    for task in tasks:
        drawn = (draw(split, task, _SAMPLE, "round trip") for split in splits)
        samples[task] = next((kept for d in drawn if (kept := [e for e in d if e.target.strip()])), [])
    return samples
