"""The JSON file of one task: its categories, definition, examples and instances, checked key by key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from harness.errors import DataError
from harness.json_lines import missing, quoted

ENGLISH: Final = "English"
_CATEGORIES, _LANGUAGES = "Categories", "Output_language"
_BOM: Final = "\ufeff"


@dataclass(frozen=True, kw_only=True)
class Header:
    """category: the first one; None if the file has none. english: whether the answers are in English."""

    category: str | None
    english: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """A positive or negative example of a task. explanation: None if it has none."""

    input: str
    output: str
    explanation: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A question of a task. outputs: all right answers; none if they are withheld."""

    id: str
    input: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TaskContent:
    """The content of a task's file that examples are made of. definition: the first one."""

    definition: str
    positive: tuple[Demonstration, ...]
    negative: tuple[Demonstration, ...]
    instances: tuple[Instance, ...]


def read_header(path: Path) -> Header:
    """Category and language. Instances that follow them in the file, as usual, are not parsed.

    Raises: DataError for a missing file, or one that is not a JSON object.
    """
    try:
        stat = path.stat()
    except OSError:
        raise missing(path) from None
    return _header(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _header(path: Path, size: int, modified: int) -> Header:
    found: dict[str, Any] = {}
    for key, value in _members(_text(path), path):
        if key in (_CATEGORIES, _LANGUAGES):
            found[key] = value
        if len(found) == 2:
            break
    category = _first(found.get(_CATEGORIES), path, _CATEGORIES)
    language = _first(found.get(_LANGUAGES), path, _LANGUAGES)
    return Header(category=category, english=language in (None, ENGLISH))


def read_task(path: Path) -> TaskContent:
    """The content of a task's file. Raises: DataError with file, key and value."""
    content = dict(_members(_text(path), path))
    definition = _first(content.get("Definition"), path, "Definition")
    if definition is None:
        raise DataError(f"{path}: 'Definition' is missing. Add the task's instruction, a text or a list of texts")
    if "Instances" not in content:
        raise DataError(
            f"{path}: 'Instances' is missing (the file has {', '.join(content) or 'no keys'}). Give the files of "
            "natural-instructions, which have one task each"
        )
    return TaskContent(
        definition=definition,
        positive=tuple(_demonstrations(content, "Positive Examples", path)),
        negative=tuple(_demonstrations(content, "Negative Examples", path)),
        instances=tuple(_instances(content, path)),
    )


def lines_of(path: Path, ids: Sequence[str]) -> dict[str, int]:
    """The line of each instance in the file, by id, where the id is written on a line of its own or the first one."""
    wanted = {json.dumps(i): i for i in ids} | {json.dumps(i, ensure_ascii=False): i for i in ids}
    found: dict[str, int] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        for quotation, id_ in wanted.items():
            if quotation in line:
                found.setdefault(id_, number)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").removeprefix(_BOM)
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}). Download the file again") from error


def _members(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The keys and values of the object in a text, each parsed when it is asked for.

    Raises: DataError with the line, for a text that is not a JSON object.
    """
    decoder = json.JSONDecoder()
    try:
        at = _expect(text, 0, "{")
        if text[_skip(text, at) : _skip(text, at) + 1] == "}":
            return
        while True:
            key, at = decoder.raw_decode(text, _skip(text, at))
            if not isinstance(key, str):
                raise json.JSONDecodeError("a key must be a text", text, at)
            value, at = decoder.raw_decode(text, _skip(text, _expect(text, at, ":")))
            yield key, value
            at = _skip(text, at)
            if text[at : at + 1] != ",":
                break
            at += 1
        _expect(text, at, "}")
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}). A file of natural-instructions is one JSON object; "
            "download the file again"
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}: the JSON is nested too deeply. Download the file again") from error


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at


def _expect(text: str, at: int, mark: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != mark:
        raise json.JSONDecodeError(f"expected {mark!r}", text, at)
    return at + 1


def _first(value: Any, path: Path, key: str) -> str | None:
    """The first text of a list, or the text itself; None if there is none. Raises: DataError for anything else."""
    texts = [value] if isinstance(value, str) else value
    if texts is None or texts == []:
        return None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path}: {key!r} must be a text or a list of texts, not {quoted(value)}")
    return texts[0].strip() or None


def _objects(content: Mapping[str, Any], key: str, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a list, each with its place for errors."""
    values = content.get(key) or []
    if not isinstance(values, list):
        raise DataError(f"{path}: {key!r} must be a list, not {quoted(values)}")
    for number, value in enumerate(values, 1):
        where = f"{path}, {key} {number}"
        if not isinstance(value, dict):
            raise DataError(f"{where}: must be an object with 'input' and 'output', not {quoted(value)}")
        yield where, value


def _member(value: Mapping[str, Any], key: str, where: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise DataError(f"{where}: {key!r} must be a text, not {quoted(text)}. Correct or remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {key!r} has half of a character at {error.start + 1} (\\ud…). Remove it") from error
    return text


def _demonstrations(content: Mapping[str, Any], key: str, path: Path) -> Iterator[Demonstration]:
    for where, value in _objects(content, key, path):
        output = value.get("output")
        # A few files have a list here, as instances do.
        first = output[0] if isinstance(output, list) and output else output
        explanation = value.get("explanation")
        yield Demonstration(
            input=_member(value, "input", where),
            output=_member({"output": first}, "output", where),
            explanation=None if explanation is None else _member(value, "explanation", where),
        )


def _instances(content: Mapping[str, Any], path: Path) -> Iterator[Instance]:
    places: dict[str, str] = {}
    for where, value in _objects(content, "Instances", path):
        outputs = value.get("output") or []
        if not isinstance(outputs, list | str):
            raise DataError(f"{where}: 'output' must be a list of texts, not {quoted(outputs)}. Correct or remove it")
        texts = [outputs] if isinstance(outputs, str) else outputs
        checked = [_member({"output": text}, "output", where) for text in texts]
        instance = Instance(
            id=_member(value, "id", where),
            input=_member(value, "input", where),
            outputs=tuple(text for text in checked if text.strip()),
        )
        if instance.id in places:
            raise DataError(f"{where}: id {quoted(instance.id)} is also the id of {places[instance.id]}. Rename one")
        places[instance.id] = where.rpartition(", ")[2]
        yield instance
