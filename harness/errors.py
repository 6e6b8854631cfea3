"""Exceptions of the project. A message names the thing, the value, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class HarnessError(Exception):
    """A run or a command failed for a reason that the user can act on (exit status 1)."""

    exit_code = 1


class UsageError(HarnessError):
    """The command itself is wrong: an unknown name, key or value (exit status 2)."""

    exit_code = 2


class DataError(HarnessError):
    """A data file is missing, malformed or empty; the message names file and line."""


class ModelError(HarnessError):
    """A base model or tokenizer cannot be used."""


class StoreError(HarnessError):
    """A run directory cannot be read or written."""


class RunLocked(StoreError):
    """Another process is using the same run (exit status 2)."""

    exit_code = 2


class TrainingError(HarnessError):
    """Training cannot continue: the loss is not finite, or there is nothing to train."""


class NotFinite(TrainingError):
    """Training diverged: the loss or its gradient is infinite or NaN. The step has not changed any parameter."""


class RankFailed(HarnessError):
    """Another rank of torchrun has failed, so that this one cannot continue."""

    printed_by_main_only = True  # The rank that has failed prints its own error.


class NotFoldable(HarnessError):
    """A task's share of an adapter is not a single LoRA: it can be evaluated with routing, but not exported."""


class BudgetError(UsageError):
    """A method cannot be built within the budget; the message states the smallest budget that fits."""


_DETAILS = "traceback: "


def add_details(error: BaseException, file: Path) -> None:
    """Note on an error which file has its traceback."""
    error.add_note(f"{_DETAILS}{file}")


def details_of(error: BaseException) -> Path | None:
    """The file that ``add_details`` has noted; None without one."""
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith(_DETAILS)]
    return Path(notes[-1].removeprefix(_DETAILS)) if notes else None


def hub_errors() -> tuple[type[Exception], ...]:
    """The errors that a call of the hub's client raises: its own, those of the network, and those of its HTTP library.

    The client raises a lost connection as its HTTP library does. That library is httpx or another one, depending on the
    client's version; the client imports the base of its errors under this name in every version.
    """
    from huggingface_hub import errors

    return (errors.HfHubHTTPError, errors.HTTPError, OSError)  # type: ignore[attr-defined]


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'cgc_lora'?`` for a misspelt name, or an empty string if no known name is similar.

    Upper and lower case are the same.
    """
    by_key = {other.casefold(): other for other in known}
    close = [by_key[key] for key in difflib.get_close_matches(name.casefold(), by_key, n=2, cutoff=0.6)]
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def unknown(what: str, name: str, known: Iterable[str], see: str = "") -> UsageError:
    """The error for an unknown name: what it should be, the choices, and where to look."""
    choices = sorted(known)
    hint = nearest(name, choices)
    if not hint and choices:
        hint = f" Known: {', '.join(choices[:40])}."
    if not choices:
        hint = " None is defined."
    return UsageError(f"unknown {what} {name!r}.{hint}" + (f" See: {see}" if see else ""))
