"""Values that a method saves for reports: ``artefacts/<name>.json``, with their kinds in ``artefacts/kinds.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from harness.errors import StoreError
from harness.method import ArtefactKind
from harness.store.files import write_json

KINDS: Final = "kinds.json"


def write_artefact(folder: Path, name: str, value: Any, kind: ArtefactKind) -> None:
    """Save a JSON value, then its kind."""
    write_json(folder / f"{name}.json", value)
    write_json(folder / KINDS, {**_kinds(folder), name: kind.value})


def read_artefacts(folder: Path, kind: ArtefactKind) -> dict[str, Any]:
    """The values of one kind by name. Raises: StoreError for a file that is not JSON.

    Runs from before kinds were recorded have no entry for a file. Its kind is then its name, since these runs stored
    gate weights as ``gates.json`` and skills as ``skills.json``.
    """
    kinds = _kinds(folder)
    files = [file for file in sorted(folder.glob("*.json")) if file.name != KINDS]
    return {file.stem: _read(file) for file in files if kinds.get(file.stem, file.stem) == kind}


def _kinds(folder: Path) -> dict[str, str]:
    file = folder / KINDS
    kinds: dict[str, str] = _read(file) if file.exists() else {}
    return kinds


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise StoreError(f"{file} is not JSON ({error}): delete the run's directory and run it again") from error
