"""The tasks of some names, opened with their data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from harness.errors import DataError, UsageError
from tasks.lm_eval_groups.config import Portable
from tasks.lm_eval_groups.definition import TaskDefinition, described
from tasks.lm_eval_groups.examples import FAILURES, TaskReader
from tasks.lm_eval_groups.kept_index import leaves_of
from tasks.lm_eval_groups.load import load_task
from tasks.lm_eval_groups.survey import LeftOut, survey


@dataclass(frozen=True, kw_only=True)
class Found:
    """The tasks of some names. version: of lm-eval. notes: which tasks are left out and why, and remarks."""

    definitions: Mapping[str, TaskDefinition]
    version: str
    notes: tuple[str, ...]


def installed_version() -> str:
    """The version of lm-eval."""
    return version("lm_eval")


def find(names: Sequence[str], included: Path | None, headline: str | None) -> Found:
    """Every leaf task of the names that can be trained on and scored.

    Raises: UsageError for an unknown name, if no task is left, and for a headline that no task has; DataError for data
        that are missing.
    """
    leaves = leaves_of(names, included)
    definitions: dict[str, TaskDefinition] = {}
    left_out, notes = dict(leaves.left_out), []
    for leaf in leaves.found.values():
        try:
            surveyed = survey(leaf, included, headline)
        except LeftOut as reason:
            left_out[leaf.name] = str(reason)
            continue
        definitions[leaf.name] = surveyed.definition
        notes += surveyed.notes
    what = ",".join(names)
    if not definitions:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UsageError(f"lm-eval:{what}: no task can be trained on and scored ({reasons or 'it has no tasks'})")
    metrics = dict.fromkeys(metric for d in definitions.values() for metric in d.metrics)
    if headline is not None and headline not in metrics:
        raise UsageError(f"suite.headline = {headline!r}: not a metric of {what}. Choose from {', '.join(metrics)}")
    lines = [f"{name} is left out: {reason}" for name, reason in left_out.items()]
    return Found(definitions=definitions, version=installed_version(), notes=(*lines, *notes))


def open_reader(name: str, definition: TaskDefinition, folder: Path | None, dev_share: float) -> TaskReader:
    """The reader of a recorded task. Raises: DataError if its data or functions are missing, or have changed."""
    portable = Portable(config=dict(definition.config), modules=dict(definition.modules))
    try:
        task = load_task(name, portable, folder)
    except FAILURES as error:
        raise DataError(
            f"{name}: lm-eval cannot open the task with these data ({described(error)}). Give the data of "
            "the run with --data"
        ) from error
    return TaskReader(name=name, definition=definition, task=task, dev_share=dev_share)
