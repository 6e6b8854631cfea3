"""The examples of any file, one at a time: in the form of a suite, or bare prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
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
    tried first, so a suite may itself have a column ``prompt``. A suite may also have no form of single files.

    Args: task: see ``Suite.read_unlabelled``.
    Raises: DataError for a file that has neither form; errors of later examples are raised while they are read.
    """
    if path.suffix.lower() == ".txt":
        return lambda: _text_lines(path)
    if not path.is_file():
        raise missing(path)
    if type(suite).read_unlabelled is Suite.read_unlabelled:
        return lambda: _prompts(path)
    try:
        next(suite.read_unlabelled(path, task))
    except DataError as error:
        columns = _first_columns(path)
        if PROMPT in columns:
            return lambda: _prompts(path)
        if columns:
            raise DataError(
                f"{str(error).removesuffix('.')}. Bare prompts are read from a column {PROMPT!r}, or from a .txt file"
            ) from error
        raise
    return lambda: suite.read_unlabelled(path, task)


def _first_columns(path: Path) -> Collection[str]:
    """The columns of the first object; none for a file that is not JSON, of which the suite's error says more."""
    try:
        return next(read_json_objects(path, {})).columns
    except DataError:
        return ()


def _prompts(path: Path) -> Iterator[UnlabelledExample]:
    for item in read_json_objects(path, {PROMPT: (str,)}):
        yield UnlabelledExample(
            place=item.place,
            id=item.optional_text("id") or str(item.number),
            task=item.optional_text("task"),
            prompt=item.columns[PROMPT],
        )


def _text_lines(path: Path) -> Iterator[UnlabelledExample]:
    for number, text in read_text_lines(path):
        yield UnlabelledExample(place=f"{path}, line {number}", id=str(number), task=None, prompt=text)
