"""What can be wrong with a suite's definition before any data are read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import Final

from harness.errors import nearest
from harness.task import SPLITS
from tasks.common.data_files import ENDINGS
from tasks.common.hub import hub_dataset
from tasks.table.keys import Definition, TaskKeys
from tasks.table.metrics import METRICS, Family
from tasks.table.templates import template_problem

_NAME: Final = re.compile(r"\w[\w.+-]*")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def problems(definition: Definition) -> Iterator[str]:
    """Each problem in one line that begins with the key."""
    if not definition.name:
        yield 'name is missing. Add a first line such as name = "reviews"'
    elif not _NAME.fullmatch(definition.name):
        yield f"name = {definition.name!r}: use letters, digits and . _ + - only, because folders are named after it"
    if not definition.task:
        yield "there is no task. Add a table [task.NAME]; `harness new suite DIR` writes an example"
    lower: dict[str, str] = {}
    for name, task in definition.task.items():
        if not _NAME.fullmatch(name):
            yield f"task.{name!r}: use letters, digits and . _ + - only, because files are named after tasks"
        if name.casefold() in lower:
            other = lower[name.casefold()]
            yield f"task.{name}: {other!r} is a task too. Rename one of the two, since file names may ignore case"
        lower[name.casefold()] = name
        yield from (f"task.{name}.{problem}" for problem in _of_task(task))


def _of_task(task: TaskKeys) -> Iterator[str]:
    yield from _data(task)
    yield from _shares(task)
    yield from _texts(task)
    yield from _choices(task)
    yield from _scoring(task)


def _data(task: TaskKeys) -> Iterator[str]:
    if not any(getattr(task, split) for split in SPLITS):
        yield 'train is missing, and dev and test too: name a file or, with hub, a split, such as train = "train.jsonl"'
    if task.hub is not None:
        hub = hub_dataset(task.hub)
        if hub is None:
            yield f"hub = {task.hub!r}: not the name of a data set. Write ORGANISATION/NAME@COMMIT"
        elif hub.revision is None or not _COMMIT.fullmatch(hub.revision):
            yield (
                f"hub = {task.hub!r}: name a commit, so that every run reads the same data: {hub.id}@COMMIT with the "
                f"40 digits from https://huggingface.co/datasets/{hub.id}/commits/main"
            )
        return
    if task.config is not None:
        yield f"config = {task.config!r}: only a data set of the hub has configurations. Remove config, or add hub"
    for split in SPLITS:
        for file in getattr(task, split):
            if PurePosixPath(file).is_absolute() or PureWindowsPath(file).is_absolute() or file.startswith("~"):
                yield f"{split} = {file!r}: give a path relative to the suite's file, so that the folder can be moved"
            elif PurePosixPath(file).suffix.lower() not in ENDINGS:
                yield f"{split} = {file!r}: the format is not known from the name. Use {', '.join(ENDINGS)}"


def _shares(task: TaskKeys) -> Iterator[str]:
    for split, share in (("dev", task.dev_share), ("test", task.test_share)):
        if not 0 <= share < 1:
            yield f"{split}_share = {share}: must be at least 0 and below 1, such as 0.1 for a tenth of train"
        elif share and getattr(task, split):
            yield f"{split}_share = {share}: {split} names files too. Remove one of the two"
        elif share and not task.train:
            yield f"{split}_share = {share}: there is no train to take it from. Add train"
    if task.dev_share + task.test_share >= 1:
        yield f"dev_share = {task.dev_share}: with test_share = {task.test_share} nothing is left to train on"


def _texts(task: TaskKeys) -> Iterator[str]:
    for key, example in (("prompt", "{{ text }}\\nIs it positive?\\n"), ("target", "{{ label }}")):
        template, column = getattr(task, key), getattr(task, f"{key}_column")
        if template is None and column is None:
            yield f'{key} is missing. Add {key} = "{example}" or {key}_column = "COLUMN"'
        elif template is not None and column is not None:
            yield f"{key} and {key}_column are both given. Remove one of the two"
        elif template is not None and (problem := template_problem(template)) is not None:
            yield f"{key}: {problem}"


def _choices(task: TaskKeys) -> Iterator[str]:
    if task.choices is None:
        return
    if task.choices_column is not None:
        yield "choices and choices_column are both given. Remove one of the two"
    if len(task.choices) < 2:
        yield f"choices = {list(task.choices)}: give two or more, or leave choices out"
    for choice in task.choices:
        if not choice.strip() or choice != choice.strip():
            yield f"choices: {choice!r} is blank or has white space at an end, which answers lose. Correct it"
    compared = [c.casefold() for c in task.choices] if task.ignore_case else list(task.choices)
    for choice, form in zip(task.choices, compared, strict=True):
        if compared.count(form) > 1:
            yield f"choices: {choice!r} is listed twice. Remove one of the two"


def _scoring(task: TaskKeys) -> Iterator[str]:
    if not task.metrics:
        yield f'metrics is missing. Add metrics = ["accuracy"] or others of {", ".join(METRICS)}'
    for name in task.metrics:
        if name not in METRICS:
            yield f"metrics: unknown metric {name!r}.{nearest(name, METRICS)} Known: {', '.join(METRICS)}"
        elif task.metrics.count(name) > 1:
            yield f"metrics: {name!r} is listed twice. Remove one of the two"
    if task.headline is not None and task.headline not in task.metrics:
        hint = nearest(task.headline, task.metrics)
        yield f"headline = {task.headline!r}: not one of metrics.{hint} Choose from {', '.join(task.metrics)}"
    families = {METRICS[name].family for name in task.metrics if name in METRICS}
    if not task.separator.strip("\r\t ") and "\n" not in task.separator and task.separator != " ":
        yield f'separator = {task.separator!r}: this cannot separate items. Use one such as ","'
    if "separator" in task.model_fields_set and Family.SET not in families:
        yield f"separator = {task.separator!r}: only set_f1 uses it. Add set_f1 to metrics, or remove separator"
    if task.tolerance < 0:
        yield f"tolerance = {task.tolerance}: must be at least 0"
    if task.tolerance and Family.NUMBER not in families:
        yield f"tolerance = {task.tolerance}: only numeric_match uses it. Add it to metrics, or remove tolerance"
    if task.extract is not None:
        yield from _pattern(task.extract)


def _pattern(pattern: str) -> Iterator[str]:
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        yield f"extract = {pattern!r}: not a regular expression ({error}). Single quotes keep backslashes as they are"
        return
    if groups > 1:
        yield f"extract = {pattern!r}: it has {groups} groups. Keep one, and write the others as (?:…)"
