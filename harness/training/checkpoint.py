"""Checkpoints: each a folder that is written aside and then renamed, with a hash of every file in its manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load, save
from torch import Tensor

from harness.errors import StoreError
from harness.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from harness.store.files import explain_write_errors, write_atomic
from harness.training.progress import Progress

LOG: Final = logging.getLogger(__name__)

# A second checkpoint is kept, so that one is left where the newest turns out to be damaged.
_KEEP: Final = 2
_MANIFEST, _PROGRESS = "manifest.json", "progress.json"
_TENSORS: Final = ("adapter", "optimiser", "best")  # each in a file NAME.safetensors
_FILES: Final = frozenset({_PROGRESS, *(f"{name}.safetensors" for name in _TENSORS)})


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a training.

    adapter: all weights. optimiser: its state by ``<parameter>/<key>``; empty between stages.
    best: the weights with the best score on dev in this stage; empty without evaluations on dev.
    """

    adapter: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class CheckpointOwner:
    """The run that checkpoints belong to. spec: as in spec.json, to report differences; empty if there is none."""

    run_id: str
    spec: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class FoundCheckpoint:
    """The newest intact checkpoint, None if there is none, and a message for each newer one that is damaged."""

    path: Path | None
    checkpoint: Checkpoint | None
    damaged: tuple[str, ...]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, owner: CheckpointOwner) -> Path:
    """Write a checkpoint under the next number, and remove all but the newest two.

    Returns: its folder.
    Raises: StoreError if the disk is full; the checkpoints before it are kept.
    """
    tensors: dict[str, Mapping[str, Tensor]] = {name: getattr(checkpoint, name) for name in _TENSORS}
    files = {f"{n}.safetensors": save({k: v.contiguous() for k, v in t.items()}) for n, t in tensors.items()}
    files[_PROGRESS] = json.dumps(checkpoint.progress.to_json(), ensure_ascii=False).encode()
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    manifest = {"run_id": owner.run_id, "spec": owner.spec, "sha256": hashes}
    before = _numbered(folder)
    number = int(before[-1].name) + 1 if before else 1
    aside, final = folder / f".{number:08d}.tmp", folder / f"{number:08d}"
    with explain_write_errors(folder):
        for stale in folder.glob(".*.tmp"):
            shutil.rmtree(stale)
        try:
            for name, data in files.items():
                write_atomic(aside / name, data)
            write_atomic(aside / _MANIFEST, json.dumps(manifest, ensure_ascii=False).encode())
            aside.rename(final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    for old in _numbered(folder)[:-_KEEP]:
        shutil.rmtree(old)
    return final


def load_newest(folder: Path, owner: CheckpointOwner) -> FoundCheckpoint:
    """The newest intact checkpoint in the folder. Raises: StoreError if it belongs to another run."""
    damaged: list[str] = []
    for path in reversed(_numbered(folder)):
        try:
            return FoundCheckpoint(path=path, checkpoint=_load(path, owner), damaged=tuple(damaged))
        except (OSError, ValueError) as error:  # a missing file; broken JSON, missing keys, a wrong hash
            damaged.append(f"checkpoint {path} is damaged ({error}); the one before it is used")
    if damaged:
        damaged.append("no intact checkpoint is left: training starts from the beginning")
    return FoundCheckpoint(path=None, checkpoint=None, damaged=tuple(damaged))


class CheckpointManager:
    """The checkpoints of one training. Only rank 0 reads and writes them, and broadcasts the content.

    last_good: the newest checkpoint that is known to be intact.
    """

    def __init__(self, folder: Path, owner: CheckpointOwner, processes: ProcessGroup = SINGLE_PROCESS) -> None:
        self.folder, self.owner, self.processes = folder, owner, processes
        self.last_good: Path | None = None

    def restore(self) -> Checkpoint | None:
        """The newest intact checkpoint, the same on every rank; damaged ones are logged.

        Raises: StoreError if it belongs to another run.
        """
        found = FoundCheckpoint(path=None, checkpoint=None, damaged=())
        found = self.processes.broadcast(load_newest(self.folder, self.owner) if self.processes.is_main else found)
        for message in found.damaged if self.processes.is_main else ():
            LOG.warning(message)
        self.last_good = found.path
        return found.checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the next checkpoint. Raises: StoreError if the disk is full."""
        if self.processes.is_main:
            self.last_good = save_checkpoint(self.folder, checkpoint, self.owner)


def _load(path: Path, owner: CheckpointOwner) -> Checkpoint:
    manifest = json.loads((path / _MANIFEST).read_bytes())
    if not isinstance(manifest, dict) or not manifest.keys() >= {"run_id", "spec", "sha256"}:
        raise ValueError(f"{_MANIFEST} does not name run, spec and hashes")
    if manifest["run_id"] != owner.run_id:
        raise StoreError(
            f"{path} belongs to run {manifest['run_id'][:8]}, not to {owner.run_id[:8]}"
            f"{_difference(manifest['spec'], owner.spec)}. "
            f"Remove {path.parent} to train this run from the start, or run the other run's command"
        )
    if manifest["sha256"].keys() != _FILES:
        raise ValueError(f"{_MANIFEST} does not list {', '.join(sorted(_FILES))}")
    data = {name: (path / name).read_bytes() for name in manifest["sha256"]}
    for name, digest in manifest["sha256"].items():
        if hashlib.sha256(data[name]).hexdigest() != digest:
            raise ValueError(f"wrong hash of {name}")
    tensors = {name: load(data[f"{name}.safetensors"]) for name in _TENSORS}
    return Checkpoint(**tensors, progress=Progress.from_json(json.loads(data[_PROGRESS])))


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """``: train.lr is 0.001 there and 0.01 here`` for every key that differs; empty if a spec is missing."""
    there, here = _flat(theirs), _flat(ours)
    keys = [k for k in sorted(there.keys() | here.keys()) if there.get(k) != here.get(k)] if there and here else []
    differences = [f"{k} is {there.get(k)!r} there and {here.get(k)!r} here" for k in keys]
    return ": " + "; ".join(differences) if differences else ""


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, part in value.items():
        flat |= _flat(part, f"{prefix}{key}.") if isinstance(part, dict) else {f"{prefix}{key}": part}
    return flat


def _numbered(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.name.isdigit()) if folder.is_dir() else []
