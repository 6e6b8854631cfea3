"""The examples of any file, one at a time: in the form of a suite, or bare prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from harness.errors import DataError
from harness.json_arrays import read_json_objects
from harness.json_lines import missing, read_text_lines
from harness.task import Suite, UnlabelledExample

PROMPT: Final = "prompt"
Read = Callable[[], Iterator[UnlabelledExample]]


def unlabelled_reader(suite: Suite, path: Path, task: str | None) -> Read:
    """A function that starts to read the examples of a file, as often as it is called.

    A file ``*.txt`` has one prompt on each line. Any other is in the suite's form; or JSON lines, or an array, with
    ``prompt`` and, where they are known, ``id`` and ``task``. The first example decides which: the suite's form is
    tried first, so a suite may itself have a column ``prompt``.

    Args: task: see ``Suite.read_unlabelled``.
    Raises: DataError for a file that has neither form; errors of later examples are raised while they are read.
    """
    if path.suffix.lower() == ".txt":
        return lambda: _text_lines(path)
    if not path.is_file():
        raise missing(path)
    try:
        next(suite.read_unlabelled(path, task))
    except DataError as error:
        if _has_prompts(path):
            return lambda: _prompts(path)
        raise DataError(f"{error} (or give bare prompts: JSON lines with {PROMPT!r}, or a .txt file)") from error
    return lambda: suite.read_unlabelled(path, task)


def _has_prompts(path: Path) -> bool:
    try:
        first = next(read_json_objects(path, {}))
    except DataError:  # the error of the suite's reader is the better one
        return False
    return PROMPT in first.columns


def _prompts(path: Path) -> Iterator[UnlabelledExample]:
    for item in read_json_objects(path, {PROMPT: (str,)}):
        id_, task = item.optional_text("id"), item.optional_text("task")
        yield UnlabelledExample(place=item.place, id=id_, task=task, prompt=item.columns[PROMPT])


def _text_lines(path: Path) -> Iterator[UnlabelledExample]:
    for number, text in read_text_lines(path):
        yield UnlabelledExample(place=f"{path}, line {number}", id=str(number), task=None, prompt=text)
