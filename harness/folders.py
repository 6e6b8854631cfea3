"""Fields of a method that name folders: known by what is in them, wherever they are."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.fingerprint import file_sha256
from harness.method import Method, named_folder


def absolute(method: Method) -> Method:
    """The same method with absolute paths."""
    changes = {name: tuple(map(_absolute, getattr(method, name))) for name in type(method).folders}
    return dataclasses.replace(method, **changes) if changes else method


def absolute_keys(cls: type[Method], keys: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys, as typed, with absolute paths in ``method.<field>``."""
    found = dict(keys)
    for name in cls.folders:
        if value := found.get(f"method.{name}"):
            found[f"method.{name}"] = [_absolute(e) for e in (value.split(",") if isinstance(value, str) else value)]
    return found


def fingerprints(method: Method) -> dict[str, tuple[str, ...]]:
    """By field, of each folder one hash of its files, behind ``name=`` where it has a name.

    Raises: UsageError for a folder that lacks a file.
    """
    folders = {name: (getattr(method, name), files) for name, files in type(method).folders.items()}
    return {
        name: tuple(_print(name, entry, files) for entry in entries)
        for name, (entries, files) in folders.items()
        if entries
    }


def _print(field: str, entry: str, files: Sequence[str]) -> str:
    name, folder = named_folder(entry)
    content = hashlib.sha256()
    for file in files:
        if not (folder / file).is_file():
            what = "is no folder" if not folder.is_dir() else f"has no {file}"
            raise UsageError(f"method.{field}: {folder} {what}. Give folders with {' and '.join(files)}")
        content.update(f"{file} {file_sha256(folder / file)}\n".encode())
    return (f"{name}=" if name else "") + content.hexdigest()


def _absolute(entry: str) -> str:
    name, folder = named_folder(entry)
    path = Path(folder).expanduser().resolve()
    return f"{name}={path}" if name else str(path)
