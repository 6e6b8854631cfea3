"""Errors that no code expected, as one line: what a user's machine caused, what a plug-in raised, and bugs.

The traceback is in a file: a run's failure.json, or, for other commands, a file in the folder for temporary files.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Final

from harness.errors import HarnessError, details_of
from harness.registry import GROUPS, plugins

_DISTRIBUTION: Final = "mtlora-harness"
_OWN: Final = ("harness", "methods", "tasks")
_PROXIES: Final = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
_POSIX: Final = ("fcntl", "grp", "pwd", "resource", "termios")  # modules of Python that Windows does not have


def describe(error: Exception, arguments: Sequence[str]) -> str:
    """The line that is printed for an error that reached the top of the program.

    Args: arguments: of the command line, for the file with the traceback.
    """
    chain = list(_chain(error))
    place = next((p for e in reversed(chain) if (p := _plugin_place(e.__traceback__))), None)
    explained = next((str(e) for e in chain if isinstance(e, HarnessError)), None)
    if explained is None and not (place and place.innermost):
        explained = _environment(chain)
    if explained is not None:
        return explained
    file = details_of(error) or _write_details(error, arguments)
    where = f"The traceback is in {file}." if file else "Its traceback cannot be written to any file."
    if place is not None and place.innermost:
        return f"{_message(chain[-1])} (raised by a plug-in: {place.text}). Correct the plug-in. {where}"
    called = "" if place is None else f" It was called by a plug-in: {place.text}."
    return (
        f"unexpected {_message(error)}. {where}{called} This is a bug in {_DISTRIBUTION}: please report it with that "
        "file. Finished work is saved."
    )


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A line of a plug-in. innermost: no code of this project was called from it when the error was raised."""

    text: str
    innermost: bool


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, the first cause last."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _message(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__


def _environment(chain: Sequence[BaseException]) -> str | None:
    """The line for an error that the user's machine or network caused; None for any other error."""
    for error in chain:
        if isinstance(error, ImportError) and "socks" in str(error).lower():
            return (
                f"a SOCKS proxy is set ({_proxies()}), and the package socksio, which connections through it need, is "
                "not installed: pip install socksio, or unset the proxy, or give local folders instead of names on the "
                "hub"
            )
        if isinstance(error, ModuleNotFoundError) and error.name in _POSIX:
            return f"this needs the Python module {error.name}, which only Linux and macOS have. On Windows, use WSL 2"
        if isinstance(error, ConnectionError) and not isinstance(error, BrokenPipeError):
            return (
                f"the network cannot be reached ({_message(error)}). Download what is missing first, or unset "
                "HF_HUB_OFFLINE where it is set"
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"no space left on the device ({error.filename or _message(error)}). Finished work is saved: free some "
                "space, then run the same command again"
            )
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            return (
                f"{error.filename}: {error.strerror}. Check the path and its permissions, then run the same command "
                "again; finished work is saved"
            )
        if isinstance(error, MemoryError):
            return "out of memory. Finished work is saved: use a smaller model or smaller batches"
    return None


def _proxies() -> str:
    values = {name: os.environ.get(name) or os.environ.get(name.lower()) for name in _PROXIES}
    set_to_socks = [name for name, value in values.items() if value and value.startswith("socks")]
    return " and ".join(set_to_socks) or "in the system's settings"


def _plugin_place(trace: TracebackType | None) -> _Place | None:
    """The innermost frame in the code of another distribution's plug-in."""
    packages = {
        plugin.target.split(":")[0].split(".")[0]
        for group in GROUPS
        for plugin in plugins(group).values()
        if plugin.distribution != _DISTRIBUTION
    }
    place = None
    for frame, line in traceback.walk_tb(trace):
        package = str(frame.f_globals.get("__name__", "")).split(".")[0]
        if package in packages:
            text = f"{frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}"
            place = _Place(text=text, innermost=True)
        elif package in _OWN and place is not None:
            place = replace(place, innermost=False)
    return place


def _write_details(error: Exception, arguments: Sequence[str]) -> Path | None:
    """Write the traceback of a command that has no run; None if that is impossible too."""
    details = {
        "command": ["harness", *arguments],
        "error": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "failed_at": datetime.now(UTC).isoformat(),
        "version": version(_DISTRIBUTION),
        "python": sys.version,
        "platform": platform.platform(),
    }
    try:
        handle, name = tempfile.mkstemp(prefix="harness-failure-", suffix=".json")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            json.dump(details, file, ensure_ascii=False, indent=1)
    except OSError:
        return None
    return Path(name)
