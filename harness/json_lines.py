"""Reading JSON lines and plain lines of text in bounded memory, with errors that name file, line, value and remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from harness.errors import DataError, nearest
from harness.hashing import LFS_POINTER

LONGEST_LINE: Final = 64 * 2**20  # bytes; a longer line means another file format, and would fill the memory
_UNFINISHED: Final = ("{", "[", ",")  # the ends of a line whose object continues in the next line
Columns = Mapping[str, tuple[type, ...]]
# The first bytes of a compressed file, its kind, and the command that writes its content to stdout.
_COMPRESSED: Final = (
    (b"\x1f\x8b", "gzip", "gzip -dc <"),
    (b"PK\x03\x04", "zip", "unzip -p"),
    (b"\xfd7zXZ\x00", "xz", "xz -dc <"),
    (b"BZh", "bzip2", "bzip2 -dc <"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc <"),
)
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
    n_read = 0
    for number, raw in _lines(path):
        if number == 1:
            _check_kind(raw, path)
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        if not n_read and raw.lstrip().startswith(b"["):
            raise DataError(
                f"{path}, line {number}: this is a JSON array, but JSON lines are expected (one object on each line, "
                f"no commas between lines). Convert it: jq -c '.[]' {path.name} > {path.stem}.jsonl"
            )
        n_read += 1
        yield number, check_columns(_parse(raw, path, number), columns, f"{path}, line {number}")
    if not n_read:
        raise DataError(f"{path}: the file is empty, or all its lines are blank. Check that the download is complete")


def read_text_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """Read a file of plain text, one line at a time, without the ends of lines.

    Yields: (line number from 1, the line), without a byte order mark and without blank lines.
    Raises: DataError, during iteration, for a file that is missing, blank, compressed or not UTF-8.
    """
    path = Path(path)
    n_read = 0
    for number, text in decoded_lines(path):
        if text.strip():
            n_read += 1
            yield number, text.removesuffix("\n").removesuffix("\r")
    if not n_read:
        raise DataError(f"{path}: the file is empty, or all its lines are blank. Check that the download is complete")


def decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """All lines of a file of text, blank ones too, each with its end.

    Yields: (line number from 1, the line), without a byte order mark.
    Raises: DataError, during iteration, for a file that is missing, compressed or not UTF-8.
    """
    for number, raw in _lines(path):
        if number == 1:
            _check_kind(raw, path)
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _other_encoding(path, number, raw, error.start, _utf16(raw) or "GB18030") from None
        yield number, text


def is_array(path: Path) -> bool:
    """Whether a file of JSON begins as one array, and not as JSON lines. Raises: DataError for a missing file."""
    for _, raw in _lines(path):
        if start := raw.removeprefix(b"\xef\xbb\xbf").lstrip():
            return start.startswith(b"[")
    return False


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


def _check_kind(first_line: bytes, path: Path) -> None:
    """Raises: DataError for a file that is compressed, or a pointer of Git LFS, whatever its name is."""
    if first_line.startswith(LFS_POINTER):
        raise DataError(
            f"{path}: this is a Git LFS pointer, not the data. Fetch the data in the repository's folder: git lfs pull"
        )
    for magic, kind, command in _COMPRESSED:
        if first_line.startswith(magic):
            raise DataError(
                f"{path}: this is a {kind} file, but plain text is expected. Unpack it: {command} {path.name} > "
                f"unpacked-{path.name.removesuffix('.gz')}"
            )


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
        raise _other_encoding(path, number, raw, error.start, _utf16(raw) or "GB18030") from None
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        guess = _utf16(raw)
        if guess is not None:
            raise _other_encoding(path, number, raw, raw.index(b"\0"), guess) from None
        hint = ""
        if text.rstrip().endswith(_UNFINISHED):
            hint = f". If each object spans several lines, convert the file: jq -c . {path.name} > {path.stem}.jsonl"
        raise DataError(
            f"{path}, line {number}, character {error.pos + 1}: broken JSON ({error.msg}): {quoted(text.strip())}. "
            f"Each line must be one complete JSON object; correct or remove the line{hint}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number}: this JSON cannot be read ({error}): {quoted(text.strip())}. Correct or remove the "
            "line"
        ) from None
    if b"\\u" in raw:
        check_surrogates(value, f"{path}, line {number}")
    return value


def _utf16(raw: bytes) -> str | None:
    """The kind of UTF-16 that a line seems to have, by its byte order mark or because JSON contains no zero bytes."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    if b"\0" not in raw[:2]:
        return None
    return "UTF-16BE" if raw[:1] == b"\0" else "UTF-16LE"


def _other_encoding(path: Path, number: int, raw: bytes, at: int, guess: str) -> DataError:
    return DataError(
        f"{path}, line {number}: byte {at + 1} is not UTF-8: {quoted(raw[at:][:12])}. "
        f"If the file is {guess}, convert it: iconv -f {guess} -t UTF-8 {path.name} > utf8{path.suffix}"
    )


def check_surrogates(value: object, where: str) -> None:
    """Raises: DataError for a text with half a character. where: "file, line 3"."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(f"{where}: {half!r} is half a character (a lone surrogate). Write the text as UTF-8") from None


def check_columns(value: object, columns: Columns, where: str) -> dict[str, Any]:
    """A value of JSON as an object with these columns. where: "file, line 3". Raises: DataError."""
    if not isinstance(value, dict):
        needed = f" with {', '.join(columns)}" if columns else ""
        raise DataError(f"{where}: expected a JSON object{needed}, not {_type_name(value)}: {quoted(value)}")
    for name, types in columns.items():
        if name not in value:
            present = ", ".join(quoted(k, 30) for k in list(value)[:12]) or "no columns"
            raise DataError(f"{where}: no column {name!r}.{nearest(name, value)} The line has {present}.")
        if not _fits(value[name], types):
            allowed = " or ".join(_TYPE_NAMES[t] for t in types)
            raise DataError(
                f"{where}: {name!r} must be {allowed}, not {_type_name(value[name])}: {quoted(value[name])}"
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
