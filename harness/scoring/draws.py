"""The bootstrap draws that are stored next to a run's scores, so that runs are compared without data or predictions."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from zipfile import BadZipFile, ZipFile

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
_STEPS: Final = 65_535  # A draw is stored in two bytes, which is exact to 0.0015 percentage points.


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskDraws:
    """The draws of a task's headline and the correct predictions, both by protocol.

    fingerprint: identifies the test examples; draws on the same examples are paired.
    correct: (n,), which predictions equal the reference; only for tasks whose answer is one label.
    """

    fingerprint: str
    headlines: Mapping[str, Resampled]
    correct: Mapping[str, NDArray[np.bool_]]


Draws = Mapping[str, TaskDraws]  # by task


def examples_fingerprint(examples: Sequence[Example]) -> str:
    """A hash of the ids, prompts, targets and further references of test examples, in their order."""
    content = hashlib.sha256()
    for e in examples:
        further = "".join(f"\x1f{text_hash(reference)}" for reference in e.references or ())
        content.update(f"{e.id}\x1f{text_hash(e.prompt)}\x1f{text_hash(e.target)}{further}\n".encode())
    return content.hexdigest()[:16]


def write_draws(directory: RunDirectory, draws: Draws) -> None:
    """Write bootstrap.npz. Draws that several protocols share are written once."""
    arrays: dict[str, NDArray[Any]] = {}
    tasks = {task: _pack(task_draws, arrays) for task, task_draws in draws.items()}
    index = json.dumps({"version": _VERSION, "tasks": tasks}, ensure_ascii=False)
    arrays["index"] = np.frombuffer(index.encode(), dtype=np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_atomic(directory.path / FILE, file.getvalue())


def read_draws(directory: RunDirectory) -> Draws | None:
    """The draws of a run; None if it has none (it was never scored, or by another version).

    Raises: StoreError for a damaged file.
    """
    path = directory.path / FILE
    if not path.exists():
        return None
    try:
        with ZipFile(path) as file:
            arrays = {name.removesuffix(".npy"): _array(file.read(name)) for name in file.namelist()}
        index = json.loads(arrays["index"].tobytes())
        if index["version"] != _VERSION:
            return None
        return {task: _unpack(entry, arrays) for task, entry in index["tasks"].items()}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise StoreError(f"{path} is damaged ({error}). To write it again: harness score {directory.path}") from error


def _array(content: bytes) -> NDArray[Any]:
    """A file of NumPy's format 1.0. ``np.load`` evaluates the header of every array as an expression.

    A leaderboard reads thousands of arrays with few different headers. Raises: ValueError for another content.
    """
    start = 10 + int.from_bytes(content[8:10], "little")
    shape, dtype = _header(content[:start])
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


@cache
def _header(head: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    file = io.BytesIO(head)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def _pack(task_draws: TaskDraws, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """One task's entry in the index; its arrays are added to ``arrays``. The keys are those of the file format."""
    names: dict[Resampled, str] = {}
    headlines = {}
    for protocol, resampled in task_draws.headlines.items():
        if resampled not in names:
            names[resampled] = f"draws_{len(arrays)}"
            arrays[names[resampled]] = np.round(resampled.draws * _STEPS).astype(np.uint16)
            if resampled.deviations is not None:
                arrays[f"{names[resampled]}_deviations"] = resampled.deviations.astype(np.float32)
        headlines[protocol] = {"value": resampled.value, "draws": names[resampled]}
    right = {}
    for protocol, flags in task_draws.correct.items():
        name = f"right_{len(arrays)}"
        arrays[name] = np.packbits(flags)
        right[protocol] = {"n": len(flags), "bits": name}
    return {"rows": task_draws.fingerprint, "headlines": headlines, "right": right}


def _unpack(entry: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> TaskDraws:
    headlines = {
        protocol: Resampled(
            value=packed["value"],
            draws=arrays[packed["draws"]].astype(np.float64) / _STEPS,
            deviations=_deviations(f"{packed['draws']}_deviations", arrays),
        )
        for protocol, packed in entry["headlines"].items()
    }
    correct = {
        protocol: np.unpackbits(arrays[packed["bits"]], count=packed["n"]).astype(np.bool_)
        for protocol, packed in entry["right"].items()
    }
    return TaskDraws(fingerprint=entry["rows"], headlines=headlines, correct=correct)


def _deviations(name: str, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64] | None:
    """The deviations of the examples, (n,); None in a file of an earlier version, which has draws only."""
    return arrays[name].astype(np.float64) if name in arrays else None
