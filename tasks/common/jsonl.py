"""Reading JSON lines in bounded memory, and building a suite's data set from them in a cache on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.errors import DataError, HarnessError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

    from harness.task import Example

VERSION: Final = 1  # version of this reader; raise it when equal files would give other examples, to rebuild caches
LONGEST_LINE: Final = 64 * 2**20  # bytes; a longer line means another file format, and would fill the memory
Columns = Mapping[str, tuple[type, ...]]
_TYPE_NAMES: Final = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list of texts",
    dict: "an object",
    type(None): "null",
}


def quoted(value: object, limit: int = 60) -> str:
    """A value for an error message: one line, control characters escaped, at most ``limit`` characters and "…"."""
    if isinstance(value, (str, bytes)):
        value = value[: limit + 1]
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def read_json_lines(path: Path | str, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file of JSON lines, one line at a time.

    Args:
        path: a UTF-8 file; a byte order mark and blank lines are ignored.
        columns: the required columns with the allowed types of their values. ``list`` means a list of texts,
            ``type(None)`` allows null, and ``int`` does not allow true and false. Other columns are not checked.

    Yields: (line number from 1, the line's object).
    Raises: DataError for a file that is missing, empty or of another format, and for the first line that does not match
        ``columns``, with file, line, value and remedy. It is raised during iteration, not by the call itself.
    """
    path = Path(path)
    number = n_read = 0
    for number, raw in _lines(path):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        if not n_read and raw.lstrip().startswith(b"["):
            raise DataError(
                f"{path}, line {number}: this is a JSON array, but JSON lines are expected (one object on each line, "
                f"no commas between lines). Convert it: jq -c '.[]' {path.name} > {path.stem}.jsonl"
            )
        n_read += 1
        yield number, _check_columns(_parse(raw, path, number), columns, path, number)
    if not n_read:
        raise DataError(f"{path}: the file is empty ({number} lines, all blank). Check that the download is complete")


def build_dataset(
    examples: Callable[[], Iterator[Example]],
    *,
    reader: str,
    version: int,
    files: Sequence[Path],
    options: Mapping[str, Any],
) -> Dataset:
    """Build a memory-mapped data set of a suite's examples, or open it from the cache if no file has changed.

    Args:
        examples: returns an iterator over the examples; called only if the cache does not have them.
        reader, version: name and version of the suite that reads them.
        files: the files they are read from; path, size and modification time are part of the cache's key.
        options: everything else that the examples depend on, as JSON values.

    Returns: a datasets.Dataset with columns id, task, prompt, target (str) and choices (list[str] or None).
    Raises: DataError for a missing file; a DataError that ``examples`` raises is passed on unchanged.
    """
    from datasets import Dataset, Features, List, Value
    from datasets.exceptions import DatasetGenerationError

    features = Features(
        {
            **{name: Value("string") for name in ("id", "task", "prompt", "target")},
            "choices": List(Value("string")),
        }
    )

    def generate() -> Iterator[dict[str, Any]]:
        for e in examples():
            choices = None if e.choices is None else list(e.choices)
            yield {"id": e.id, "task": e.task, "prompt": e.prompt, "target": e.target, "choices": choices}

    key = [VERSION, reader, version, [_stamp(f) for f in files], dict(options)]
    fingerprint = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    with _no_progress_bars():
        try:
            return Dataset.from_generator(generate, features=features, fingerprint=fingerprint)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, HarnessError):
                raise error.__cause__ from None
            raise


def missing(path: Path) -> DataError:
    """The error for a missing file: it lists what the folder contains instead."""
    folder = path.parent
    if path.is_dir():
        return DataError(f"{path}: this is a folder, but a file of JSON lines is expected")
    if not folder.is_dir():
        return DataError(f"{path}: there is no folder {folder}. Check the path")
    names = sorted(p.name for p in folder.iterdir())
    content = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return DataError(f"{path}: no such file.{nearest(path.name, names)} The folder contains {content or 'no files'}.")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        raise missing(path)
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(raw) > LONGEST_LINE:
                    raise DataError(
                        f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MiB. JSON lines have one object on "
                        f"each line; this line begins with {quoted(raw)}"
                    )
                yield number, raw
    except OSError as error:
        raise DataError(
            f"{path}: the file cannot be read ({error.strerror}). Check its permissions and the disk"
        ) from error


def _parse(raw: bytes, path: Path, number: int) -> object:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        guess = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "GB18030"
        raise DataError(
            f"{path}, line {number}: byte {error.start + 1} is not UTF-8: {quoted(raw[error.start :][:12])}. "
            f"If the file is {guess}, convert it: iconv -f {guess} -t UTF-8 {path.name} > utf8.jsonl"
        ) from None
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}, character {error.pos + 1}: broken JSON ({error.msg}): {quoted(text.strip())}. "
            "Each line must be one complete JSON object; correct or remove the line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number}: this JSON cannot be read ({error}): {quoted(text.strip())}. Correct or remove the "
            "line"
        ) from None
    if b"\\u" in raw:
        _check_surrogates(value, path, number)
    return value


def _check_surrogates(value: object, path: Path, number: int) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(
            f"{path}, line {number}: {half!r} is half a character (a lone surrogate). Write the text as UTF-8"
        ) from None


def _check_columns(value: object, columns: Columns, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        with_columns = f" with {', '.join(columns)}" if columns else ""
        raise DataError(
            f"{path}, line {number}: expected a JSON object{with_columns}, not {_type_name(value)}: {quoted(value)}"
        )
    for name, types in columns.items():
        if name not in value:
            present = ", ".join(quoted(k, 30) for k in list(value)[:12]) or "no columns"
            raise DataError(f"{path}, line {number}: no column {name!r}.{nearest(name, value)} The line has {present}.")
        if not _fits(value[name], types):
            allowed = " or ".join(_TYPE_NAMES[t] for t in types)
            raise DataError(
                f"{path}, line {number}: {name!r} must be {allowed}, "
                f"not {_type_name(value[name])}: {quoted(value[name])}"
            )
    return value


def _fits(value: object, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in types
    if isinstance(value, list):
        return list in types and all(isinstance(item, str) for item in value)
    return isinstance(value, types)


def _type_name(value: object) -> str:
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        return "a list with other values than texts"
    return _TYPE_NAMES[type(value)]


def _stamp(path: Path) -> list[str | int]:
    try:
        stat = path.stat()
    except OSError:
        raise missing(path) from None
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
