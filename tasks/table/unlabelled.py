"""Lines of any data file as examples without targets: which task's template makes the prompt of a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.errors import DataError
from harness.json_lines import missing
from harness.task import SPLITS, UnlabelledExample
from tasks.common.data_files import ENDINGS, read_lines
from tasks.table.examples import Line, TaskReader


def unlabelled(path: Path, readers: Sequence[TaskReader], task: str | None) -> Iterator[UnlabelledExample]:
    """The lines of a file, in order.

    A line belongs to the task whose ``where`` it matches, else to ``task``, else to the only task of the suite, else to
    the only task that reads a file of this name.

    Raises: DataError with file, line and remedy.
    """
    if not path.is_file():
        raise missing(path)
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"{path}: the format is not known from the name. Use {', '.join(ENDINGS)}, or .txt for prompts")
    of_file = _of_file(path, readers, task)
    for number, columns in read_lines(path):
        line = Line(place=f"{path}, line {number}", number=str(number), columns=columns)
        reader = _of_line(line, readers, task) or of_file
        if reader is None:
            raise DataError(
                f"{line.place}: the line does not say which task it belongs to. Name the task with --task, one of "
                f"{', '.join(r.task for r in readers)}"
            )
        yield reader.unlabelled(line)


def _of_line(line: Line, readers: Sequence[TaskReader], task: str | None) -> TaskReader | None:
    """The task whose ``where`` a line matches. Raises: DataError if several match and the user has not chosen one."""
    matching = [reader for reader in readers if reader.matches(line.columns)]
    if len(matching) > 1:
        chosen = [reader for reader in matching if reader.task == task]
        if not chosen:
            raise DataError(
                f"{line.place}: the line matches where of {' and '.join(r.task for r in matching)}. Choose one with "
                "--task"
            )
        return chosen[0]
    return matching[0] if matching else None


def _of_file(path: Path, readers: Sequence[TaskReader], task: str | None) -> TaskReader | None:
    if task is not None:
        return next((reader for reader in readers if reader.task == task), None)
    if len(readers) == 1:
        return readers[0]
    named = [
        reader
        for reader in readers
        if not reader.keys.where and any(Path(name).name == path.name for s in SPLITS for name in reader.keys.given(s))
    ]
    return named[0] if len(named) == 1 else None
