"""Atomic writes: a file is written under a temporary name and then renamed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import StoreError

if TYPE_CHECKING:
    from pydantic import BaseModel


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, missing permissions or an impossible path into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise StoreError(
                f"cannot write {path}: {error.strerror}. Finished work is saved: free some space or fix the "
                "permissions (or choose another --out), then run the same command again."
            ) from error
        if isinstance(error, NotADirectoryError) or _is_above(error, path):
            raise StoreError(
                f"cannot write {path}: {error.strerror} ({error.filename}). Choose another --out, in a folder that "
                "exists or can be created."
            ) from error
        raise


def _is_above(error: OSError, path: Path) -> bool:
    """Whether the path or a folder above it cannot be created; a missing file elsewhere is another error."""
    kinds = FileNotFoundError | FileExistsError
    return isinstance(error, kinds) and error.filename is not None and Path(error.filename) in (path, *path.parents)


def write_atomic(path: Path, data: bytes) -> None:
    """Write to a temporary file, flush it to disk and rename it, so that no reader gets a partly written file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explain_write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def to_bytes(value: BaseModel) -> bytes:
    """The contents of a file that holds one record."""
    return (value.model_dump_json(indent=1) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value atomically, indented."""
    write_atomic(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append complete lines and flush them to disk."""
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
