"""One line for the first thing that is wrong with the keys of a suite's file: the key, the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import ValidationError

from harness.errors import nearest

_TYPES: Final = {
    "string_type": "a text in quotes",
    "tuple_type": "a list of texts",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "dict_type": "a table of keys",
    "model_type": "a table of keys",
    "model_attributes_type": "a table of keys",
    "finite_number": "a finite number",
}


def worded(error: ValidationError, content: Mapping[str, Any], known: Mapping[str, Iterable[str]]) -> str:
    """The first problem. known: the keys by table ("" for the top of the file)."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        table = known["task" if len(where) > 2 else ""]
        hint = nearest(where[-1], table) or f" Known keys: {', '.join(table)}."
        if len(where) == 1 and where[0] in known["task"]:
            hint = " It belongs to a task: write it below a line [task.NAME]."
        return f"unknown key {key!r}.{hint}"
    expected = _TYPES.get(first["type"], first["msg"])
    return f"{key} = {_short(first.get('input', content))}: this must be {expected}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
