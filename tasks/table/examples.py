"""Lines of data as examples: the split of each line, its prompt, target, choices and id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from harness.errors import DataError
from harness.json_lines import quoted
from harness.task import Example, UnlabelledExample
from tasks.common.data_files import read_lines
from tasks.common.hub import HubDataset, hub_dataset
from tasks.table.keys import TaskKeys
from tasks.table.templates import MissingColumn, RenderError, Template, no_column, template

RULE: Final = "content-hash-1"  # raise the number when equal lines would be assigned to other splits


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a source. number: of the line or record in its file, from 1. place: "file, line 3", for errors."""

    place: str
    number: str
    columns: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PlacedExample:
    """An example and where it comes from."""

    place: str
    example: Example


@dataclass(frozen=True, kw_only=True)
class TaskReader:
    """Reads the examples of one task. folder: where the task's files are."""

    task: str
    keys: TaskKeys
    folder: Path

    def examples(self, split: str) -> Iterator[PlacedExample]:
        """The examples of a split, in the order of the source. Raises: DataError with file, line, key and remedy."""
        for line in self._lines(split):
            if self._selected(line) and self._split_of(line, split):
                yield PlacedExample(place=line.place, example=self._example(line, split))

    def matches(self, columns: Mapping[str, Any]) -> bool:
        """Whether a line names this task: it has the values of ``where``, and ``where`` is not empty."""
        where = self.keys.where.items()
        return bool(where) and all(name in columns and _equal(columns[name], value) for name, value in where)

    def unlabelled(self, line: Line) -> UnlabelledExample:
        """A line of any file, without its target. Raises: DataError with file, line, key and remedy."""
        prompt = self._text(line, "prompt", self._prompt, self.keys.prompt_column)
        return UnlabelledExample(place=line.place, id=f"{self.task}-{self._id(line)}", task=self.task, prompt=prompt)

    def files(self, split: str) -> list[Path]:
        """The local files that a split is read from."""
        return [] if self.hub is not None else [self.folder / name for name in self.keys.given(split)]

    @cached_property
    def hub(self) -> HubDataset | None:
        """The data set on the hub, at its commit; None if the task is read from files."""
        return None if self.keys.hub is None else hub_dataset(self.keys.hub)

    def _lines(self, split: str) -> Iterator[Line]:
        sources = self.keys.given(split)
        for position, name in enumerate(sources, 1):
            prefix = f"{position}." if len(sources) > 1 else ""
            numbered = read_lines(self.folder / name) if self.hub is None else _hub_lines(self.hub, self.keys, name)
            where = str(self.folder / name) if self.hub is None else f"{self.hub.id} {name}"
            for number, columns in numbered:
                yield Line(place=f"{where}, line {number}", number=f"{prefix}{number}", columns=columns)

    def _selected(self, line: Line) -> bool:
        """Whether a line has the values of ``where``."""
        for column, value in self.keys.where.items():
            if column is None or column not in line.columns:
                raise self._error(line, f"where.{column}", no_column(column, line.columns))
            if not _equal(line.columns[column], value):
                return False
        return True

    def _split_of(self, line: Line, split: str) -> bool:
        """Whether a line belongs to the split. Lines with equal prompt columns are in the same split, in any order."""
        keys = self.keys
        test, dev = keys.share("test"), keys.share("dev")
        if not (test or dev) or (split != "train" and getattr(keys, split)):
            return True
        columns = (keys.prompt_column,) if self._prompt is None else self._prompt.columns
        content = json.dumps([line.columns.get(str(c)) for c in columns], ensure_ascii=False, default=str)
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()
        return split == assigned(digest, dev=dev, test=test)

    def _example(self, line: Line, split: str) -> Example:
        prompt = self._text(line, "prompt", self._prompt, self.keys.prompt_column)
        if not prompt.strip():
            raise self._error(line, "prompt", "the prompt is blank. Correct the line or remove it")
        return Example(
            id=f"{self.task}-{self._id(line)}",
            task=self.task,
            prompt=prompt,
            target=self._target(line, split),
            choices=self._choices(line),
        )

    def _target(self, line: Line, split: str) -> str:
        """The target; "" where it is null, or where a test split has no such column because targets are withheld."""
        column = self.keys.target_column
        if column is not None and column in line.columns and line.columns[column] is None:
            return ""
        try:
            target = self._text(
                line, "target", self._target_template, column, missing_is_error=split != "test" or not self.keys.train
            )
        except MissingColumn:
            return ""
        return target if target.strip() else ""

    def _text(
        self, line: Line, key: str, text: Template | None, column: str | None, *, missing_is_error: bool = True
    ) -> str:
        try:
            if text is not None:
                return text.render(line.columns)
            if column not in line.columns:
                raise MissingColumn(no_column(str(column), line.columns))
        except RenderError as error:
            if isinstance(error, MissingColumn) and not missing_is_error:
                raise
            raise self._error(line, key if text is not None else f"{key}_column", str(error)) from error
        value = line.columns[str(column)]
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise self._error(
                line, f"{key}_column", f"{column!r} is {quoted(value)}, not a text. Use {key} with a template"
            )
        return str(value)

    def _choices(self, line: Line) -> tuple[str, ...] | None:
        column = self.keys.choices_column
        if column is None:
            return self.keys.choices
        if column not in line.columns:
            raise self._error(line, "choices_column", no_column(column, line.columns))
        value = line.columns[column]
        if value is None:
            return None
        if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
            raise self._error(
                line, "choices_column", f"{column!r} is {quoted(value)}, not a list of texts. JSON lines can hold lists"
            )
        return tuple(v.strip() for v in value)

    def _id(self, line: Line) -> str:
        column = self.keys.id_column
        if column is None:
            return line.number
        if column not in line.columns:
            raise self._error(line, "id_column", no_column(column, line.columns))
        value = line.columns[column]
        if not isinstance(value, (str, int)) or isinstance(value, bool) or not str(value).strip():
            raise self._error(line, "id_column", f"{column!r} is {quoted(value)}. Give each line a text or a number")
        return str(value)

    @cached_property
    def _prompt(self) -> Template | None:
        return None if self.keys.prompt is None else template(self.keys.prompt)

    @cached_property
    def _target_template(self) -> Template | None:
        return None if self.keys.target is None else template(self.keys.target)

    def _error(self, line: Line, key: str, problem: str) -> DataError:
        return DataError(f"{line.place}: task.{self.task}.{key}: {problem}")


def _equal(cell: object, value: object) -> bool:
    """Whether a cell has a value of ``where``. A cell of CSV is text, whatever it means."""
    return cell in (value, str(value))


def assigned(digest: bytes, *, dev: float, test: float) -> str:
    """The split of a content hash: its last 8 bytes, as a number in [0, 1), are compared with the shares."""
    position = int.from_bytes(digest[-8:]) / 2**64
    if position < test:
        return "test"
    return "dev" if position < test + dev else "train"


def _hub_lines(hub: HubDataset, keys: TaskKeys, split: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    from datasets import load_dataset

    number = 0
    try:
        dataset = load_dataset(hub.id, keys.config, revision=hub.revision, split=split)
        for number, columns in enumerate(dataset, 1):
            yield number, columns
    except (OSError, ValueError) as error:
        raise DataError(
            f"{hub.name}, split {split!r}: the data set on the hub cannot be read ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}). Check the connection, hub, config and the names of the splits"
        ) from error
    if not number:
        raise DataError(f"{hub.name}, split {split!r}: it has no examples. Check the name of the split")
