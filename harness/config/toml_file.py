"""Reading the TOML files that users write."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from harness.errors import UsageError


def read_toml(path: Path, *, option: str = "", hint: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
        option: that the file was given with; the error message begins with it.
        hint: what to give instead of a file that cannot be opened.

    Raises: UsageError if the file cannot be opened, or is not TOML in UTF-8.
    """
    where = f"{option} {path}".strip()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}. {hint}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: not valid TOML: {error}") from error
