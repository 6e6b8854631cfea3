"""Conversion of files with older schemas when they are read: one function for each step from a schema to the next.

A file states its schema as ``schema_version``; a file without one has schema 1, the first. To change the format of a
file, raise the version of its model in ``harness.store.record`` and add the step here: old files are never rewritten,
and so they load in every later version. A step must leave the identity of the run as it is (``RunSpec.identity``),
because the run_id in the file is its hash.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from harness.errors import StoreError

Migration = Callable[[dict[str, Any]], dict[str, Any]]
FIRST: Final = 1  # the schema of files that state none

MIGRATIONS: Final[dict[str, dict[int, Migration]]] = {}
"""By file name and by the schema that it has: content -> content of the next schema, without ``schema_version``."""


def migrate(content: dict[str, Any], path: Path, current: int) -> dict[str, Any]:
    """The content of a file in the current schema.

    Args: current: the schema that this version writes.
    Raises: StoreError if the file's schema is newer than ``current``, is not a schema, or cannot be converted.
    """
    schema = content.get("schema_version", FIRST)
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise StoreError(f"{path} is damaged: schema_version is {schema!r}, and a whole number is expected")
    if schema > current:
        raise StoreError(
            f"{path} was written by a newer version of mtlora-harness (schema {schema}); upgrade mtlora-harness. "
            f"The installed version reads schemas up to {current}."
        )
    steps = MIGRATIONS.get(path.name, {})
    while schema < current:
        if schema not in steps:
            raise StoreError(f"{path} has schema {schema}, which cannot be converted to schema {current}")
        content = {**steps[schema](content), "schema_version": schema + 1}
        schema += 1
    return content
