"""Printing in any encoding: a character that a terminal or a file cannot represent never stops the program."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata
from typing import Final

HANDLER: Final = "harness.replace"
_SIMILAR: Final = {"–": "-", "—": "-", "−": "-", "×": "x", "Δ": "diff", "±": "+-", "·": "*", "→": "->"}


def replace_unprintable() -> None:
    """From now on stdout and stderr replace the characters that their encoding does not have.

    A similar ASCII character is written where there is one, else "?". Python itself would raise
    UnicodeEncodeError with encodings such as GBK or Latin-1.
    """
    codecs.register_error(HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors=HANDLER)


def is_printable(text: str) -> bool:
    """Whether stdout can represent every character of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_similar, error.object[error.start : error.end])), error.end


def _similar(character: str) -> str:
    simple = _SIMILAR.get(character) or unicodedata.normalize("NFKD", character)
    return simple if simple.isascii() else "?"
