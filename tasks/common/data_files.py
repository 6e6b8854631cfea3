"""The lines of a data file, one at a time: JSON lines, a JSON array, CSV, TSV or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from harness.errors import DataError
from harness.json_arrays import read_json_objects
from harness.json_lines import decoded_lines, missing, quoted, read_json_lines

Lines = Iterator[tuple[int, Mapping[str, Any]]]  # line number (CSV: of the last line of a record) or position, from 1


def read_lines(path: Path) -> Lines:
    """The lines of a file, by the ending of its name. Raises: DataError with file, line and remedy."""
    if not path.is_file():
        raise missing(path)
    empty = True
    for line in _READERS[path.suffix.lower()](path):
        empty = False
        yield line
    if empty:
        raise DataError(f"{path}: the file has no lines of data. Check that it is complete")


def _json(path: Path) -> Lines:
    """A JSON array of objects, or JSON lines."""
    for item in read_json_objects(path, {}):
        yield item.number, item.columns


def _delimited(path: Path, delimiter: str) -> Lines:
    # A quoted cell may span lines, so the parser gets each line with its end, which may also be a lone "\r".
    lines = chain.from_iterable(StringIO(text, newline="") for _, text in decoded_lines(path))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        _check_header(path, names, delimiter)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, but the first line names {len(names)} "
                    f"columns ({', '.join(names)}). Put cells with a separator or a quote into quotes"
                )
            yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}. Correct the quotes, or convert the file to JSON lines"
        ) from error


def _check_header(path: Path, names: list[str], delimiter: str) -> None:
    for name in names:
        if not name.strip():
            raise DataError(f"{path}, line 1: a column has no name. The first line must name every column")
        if names.count(name) > 1:
            raise DataError(f"{path}, line 1: two columns have the name {name!r}. Rename one of them")
    other = {",": "\t", "\t": ","}[delimiter]
    if len(names) == 1 and other in names[0]:
        ending = {",": ".csv", "\t": ".tsv"}[other]
        raise DataError(f"{path}, line 1: one column {quoted(names[0])}. Name the file {path.stem}{ending}?")


def _csv(path: Path) -> Lines:
    return _delimited(path, ",")


def _tsv(path: Path) -> Lines:
    return _delimited(path, "\t")


def _parquet(path: Path) -> Lines:
    import pandas

    try:
        table = pandas.read_parquet(path, dtype_backend="pyarrow")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a Parquet file ({_first_line(error)}). Check the file") from error
    names = [str(name) for name in table.columns]
    for number, values in enumerate(zip(*(table[name].array for name in table.columns), strict=True), 1):
        yield number, {name: _plain(value) for name, value in zip(names, values, strict=True)}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _plain(value: Any) -> Any:
    """A cell as a Python value; null is None."""
    import pandas

    if isinstance(value, (list, dict, str)):
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    return None if value is pandas.NA or value is None else value


_READERS: Final[Mapping[str, Callable[[Path], Lines]]] = MappingProxyType(
    {".jsonl": lambda path: read_json_lines(path, {}), ".json": _json, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet}
)
ENDINGS: Final = tuple(_READERS)
