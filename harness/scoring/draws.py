"""The bootstrap draws that a run keeps beside its scores, so that runs can be compared without data or texts."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from harness.errors import StoreError
from harness.scoring.statistics import Resampled
from harness.store.files import write_atomic
from harness.store.record import text_hash
from harness.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from harness.task import Example

FILE: Final = "bootstrap.npz"
_VERSION: Final = 2
_STEPS: Final = 65_535  # a draw is kept in two bytes, to 0.0015 percent points


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskDraws:
    """A task's headline and right answers, both by protocol.

    rows: the fingerprint of the scored test rows; draws of equal rows are paired.
    right: (n,), which test rows were answered as the gold text; for tasks with one label as the answer.
    """

    rows: str
    headlines: Mapping[str, Resampled]
    right: Mapping[str, NDArray[np.bool_]]


Draws = Mapping[str, TaskDraws]  # by task


def rows_fingerprint(examples: Sequence[Example]) -> str:
    """What makes two sets of test rows the same: ids, prompts and targets, in this order."""
    content = hashlib.sha256()
    for e in examples:
        content.update(f"{e.id}\x1f{text_hash(e.prompt)}\x1f{text_hash(e.target)}\n".encode())
    return content.hexdigest()[:16]


def write_draws(directory: RunDirectory, draws: Draws) -> None:
    """Write bootstrap.npz; protocols that share a headline's draws share them in the file."""
    arrays: dict[str, NDArray[Any]] = {}
    tasks = {task: _pack(kept, arrays) for task, kept in draws.items()}
    index = json.dumps({"version": _VERSION, "tasks": tasks}, ensure_ascii=False)
    arrays["index"] = np.frombuffer(index.encode(), dtype=np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_atomic(directory.path / FILE, file.getvalue())


def read_draws(directory: RunDirectory) -> Draws | None:
    """The draws of a run; None where it keeps none (scored by another version, or never).

    Raises: StoreError for a damaged file.
    """
    path = directory.path / FILE
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            index = json.loads(arrays["index"].tobytes())
            if index["version"] != _VERSION:
                return None
            return {task: _unpack(entry, arrays) for task, entry in index["tasks"].items()}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise StoreError(f"{path} is damaged ({error}). Make it again: harness score {directory.path}") from error


def _pack(kept: TaskDraws, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    seen: dict[int, str] = {}
    headlines = {}
    for protocol, found in kept.headlines.items():
        if id(found) not in seen:
            seen[id(found)] = f"draws_{len(arrays)}"
            arrays[seen[id(found)]] = np.round(found.draws * _STEPS).astype(np.uint16)
        headlines[protocol] = {"value": found.value, "draws": seen[id(found)]}
    right = {}
    for protocol, flags in kept.right.items():
        name = f"right_{len(arrays)}"
        arrays[name] = np.packbits(flags)
        right[protocol] = {"n": len(flags), "bits": name}
    return {"rows": kept.rows, "headlines": headlines, "right": right}


def _unpack(entry: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> TaskDraws:
    headlines = {
        protocol: Resampled(value=found["value"], draws=arrays[found["draws"]].astype(np.float64) / _STEPS)
        for protocol, found in entry["headlines"].items()
    }
    right = {
        protocol: np.unpackbits(arrays[found["bits"]], count=found["n"]).astype(np.bool_)
        for protocol, found in entry["right"].items()
    }
    return TaskDraws(rows=entry["rows"], headlines=headlines, right=right)
