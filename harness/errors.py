"""What can go wrong, in words that say what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
    """Another process works on the same run (exit status 2)."""

    exit_code = 2


class TrainingError(HarnessError):
    """Training cannot go on: the loss is not finite, or nothing is left to train."""


class NotFinite(TrainingError):
    """Training diverged: the loss or its gradient is infinite or no number; the step has changed nothing."""


class NotFoldable(HarnessError):
    """An adapter's share of a task is no single LoRA: it is evaluated routed and cannot be exported."""


class BudgetError(UsageError):
    """A method cannot be built within the budget; the message names the least possible."""


def hub_errors() -> tuple[type[Exception], ...]:
    """What a call of the hub's client raises: its own errors, those of the network, and those of its HTTP library.

    The client raises a lost connection as its HTTP library does. That library is httpx or another one, depending on the
    client's version; the client imports the base of its errors under this name in every version.
    """
    from huggingface_hub import errors

    return (errors.HfHubHTTPError, errors.HTTPError, OSError)  # type: ignore[attr-defined]


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'cgc_lora'?`` for a misspelt name, or an empty string when nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def unknown(what: str, name: str, known: Iterable[str], see: str = "") -> UsageError:
    """The one wording for a name that nobody knows: the thing, the choices, the next step."""
    choices = sorted(known)
    hint = nearest(name, choices)
    if not hint and choices:
        hint = f" Known: {', '.join(choices[:40])}."
    return UsageError(f"no {what} {name!r}.{hint}" + (f" See: {see}" if see else ""))
