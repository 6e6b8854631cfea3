"""Reading and checking a suite's file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from harness.errors import UsageError
from tasks.table.check import problems
from tasks.table.keys import Definition, TaskKeys
from tasks.table.wording import worded

_TWICE: Final = re.compile(r"Cannot declare \('task', '(?P<name>[^']*)'\) twice \((?P<place>.*)\)")


def read_definition(path: Path) -> Definition:
    """Read and check a suite's file.

    Raises: UsageError, in one line with file, key and remedy, for the first thing that is wrong.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}. Give a suite's file; `harness new suite DIR` writes one"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start + 1} is not UTF-8. Save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        twice = _TWICE.search(str(error))
        if twice is not None:
            raise UsageError(
                f"{path}: two tasks have the name {twice['name']!r} ({twice['place']}). Rename one of them"
            ) from error
        raise UsageError(
            f'{path}: not valid TOML: {error}. Texts need quotes, long ones three ("""), and each key is given once'
        ) from error
    return parse_definition(content, str(path))


def parse_definition(content: Mapping[str, Any], where: str) -> Definition:
    """The definition with this content. where: the file, for errors. Raises: UsageError as ``read_definition``."""
    try:
        definition = Definition.model_validate(content)
    except ValidationError as error:
        known = {"": Definition.model_fields, "task": TaskKeys.model_fields}
        raise UsageError(f"{where}: {worded(error, content, known)}") from error
    for problem in problems(definition):
        raise UsageError(f"{where}: {problem}")
    return definition
