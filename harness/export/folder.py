"""Folders that are written completely or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import StoreError
from harness.store.files import explain_write_errors


def require_new(out: Path) -> None:
    """Raises: StoreError if ``out`` exists and is not an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise StoreError(f"{out} exists already: give another --out, or remove it")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to ``out`` at the end. Raises: StoreError if ``out`` exists."""
    require_new(out)
    temporary = out.with_name(f".{out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with explain_write_errors(out):
            temporary.mkdir(parents=True)
            yield temporary
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
