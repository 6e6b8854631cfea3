"""SHA-256 of a file, cached while its path, size and modification time stay the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Final

from harness.errors import DataError

LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"
"""How a file begins that stands for another one, which Git LFS has not fetched."""
_CHUNK: Final = 1 << 22
_SETTLED_NS: Final = 2_000_000_000  # a file changed more recently may change again within one tick of its clock
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file in hexadecimal.

    A file is read once; later calls read a small cache entry in the user's cache folder
    (``$XDG_CACHE_HOME/mtlora-harness/sha256``). If the cache cannot be written, the file is hashed each time.

    Raises: DataError if the file is missing or cannot be read.
    """
    file = Path(path).expanduser().resolve()
    try:
        state = file.stat()
        entry = _entry(f"{file}|{state.st_size}|{state.st_mtime_ns}")
        cached = _read(entry)
        if cached is not None:
            return cached
        digest = _hash(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}. Give a file that exists.") from error
    if abs(time.time_ns() - state.st_mtime_ns) > _SETTLED_NS:
        _write(entry, digest)
    return digest


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file stands for another one, which Git LFS has not fetched. Raises: OSError if it cannot be read."""
    with path.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def cache_folder() -> Path:
    """Folder of files that can be recomputed: ``$XDG_CACHE_HOME/mtlora-harness`` or ``~/.cache/mtlora-harness``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtlora-harness"


def _hash(file: Path) -> str:
    content = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            content.update(chunk)
    return content.hexdigest()


def _entry(key: str) -> Path:
    return cache_folder() / "sha256" / hashlib.sha256(key.encode()).hexdigest()


def _read(entry: Path) -> str | None:
    try:
        text = entry.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return text if _DIGEST.fullmatch(text) else None


def _write(entry: Path, digest: str) -> None:
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=entry.parent)
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(digest)
        Path(aside).replace(entry)
