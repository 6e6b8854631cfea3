"""Objects of a JSON file, which is JSON lines or one array of objects, in bounded memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from harness.errors import DataError
from harness.json_lines import (
    LONGEST_LINE,
    Columns,
    check_columns,
    check_surrogates,
    is_array,
    quoted,
    read_json_lines,
)

_PIECE: Final = 1 << 20  # characters that are read from an array at once
_BLANK: Final = re.compile(r"\s*")
_DECODER: Final = json.JSONDecoder()


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedObject:
    """One object of a file.

    number: of its line, or its position in the array, from 1. place: "file, line 3" or "file, item 3", for errors.
    """

    number: int
    place: str
    columns: dict[str, Any]

    def optional_text(self, name: str) -> str | None:
        """The text or whole number of a column as text; None if it is missing or null. Raises: DataError."""
        if self.columns.get(name) is None:
            return None
        return str(check_columns(self.columns, {name: (str, int)}, self.place)[name])


def read_json_objects(path: Path, columns: Columns) -> Iterator[PlacedObject]:
    """Read JSON lines, or an array of objects, one object at a time.

    Args: columns: as in ``read_json_lines``.
    Raises: DataError, during iteration, as ``read_json_lines``.
    """
    if not is_array(path):
        for number, line in read_json_lines(path, columns):
            yield PlacedObject(number=number, place=f"{path}, line {number}", columns=line)
        return
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, item in enumerate(_ArrayReader(path, file).items(), 1):
                place = f"{path}, item {number}"
                yield PlacedObject(number=number, place=place, columns=check_columns(item, columns, place))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: after item {number}, {quoted(error.object[error.start :][:12])} is not UTF-8. If the file is "
            f"GB18030, convert it: iconv -f GB18030 -t UTF-8 {path.name} > utf8.json"
        ) from None
    if not number:
        raise DataError(f"{path}: the array is empty. Check that the file is complete")


class _ArrayReader:
    """Decodes the items of an array one by one; ``buffer`` has what was read from the file and not yet decoded."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.buffer, self.position = "", 0

    def items(self) -> Iterator[object]:
        """Every item. Raises: DataError with the item and the remedy."""
        self._skip("[")
        number = 0
        while self._next() not in ("]", ""):
            number += 1
            yield self._item(number)
            if self._next() == ",":
                self._skip(",")
                if self._next() == "]":
                    raise self._error(number, "another item is expected after its comma, found")
            elif self._next() not in ("]", ""):
                raise self._error(number, "a comma or ] is expected after it, found")
        if self._next() == "":
            raise DataError(f"{self.path}: the array has no end after item {number}. Check that the file is complete")
        self._skip("]")
        if self._next():
            raise self._error(number, "text is left after the end of the array:")

    def _item(self, number: int) -> object:
        while True:
            try:
                item, end = _DECODER.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                # The item may end in a part of the file that has not been read yet.
                if len(self.buffer) - self.position <= LONGEST_LINE and self._more():
                    continue
                raise self._error(number, f"broken JSON ({error.msg}):") from None
            except (ValueError, RecursionError) as error:
                raise self._error(number, f"this JSON cannot be read ({error}):") from None
            if "\\u" in self.buffer[self.position : end]:
                check_surrogates(item, f"{self.path}, item {number}")
            self.position = end
            return item

    def _next(self) -> str:
        """The next character that is not white space, which stays in the buffer; "" at the end of the file."""
        while True:
            found = _BLANK.match(self.buffer, self.position)
            self.position = self.position if found is None else found.end()
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self._more():
                return ""

    def _skip(self, character: str) -> None:
        if self._next() == character:
            self.position += 1

    def _more(self) -> bool:
        """Read on, at least as much as is left, so that a long item is decoded a few times only."""
        rest = self.buffer[self.position :]
        piece = self.file.read(max(_PIECE, len(rest)))
        self.buffer, self.position = rest + piece, 0
        return bool(piece)

    def _error(self, number: int, problem: str) -> DataError:
        found = quoted(self.buffer[self.position :][:60])
        return DataError(
            f"{self.path}, item {number}: {problem} {found}. Correct the file, or convert it to JSON lines"
        )
