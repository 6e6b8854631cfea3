"""Checkpoints: a folder written aside and renamed, every file hashed; the newest good one wins."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from harness.errors import StoreError
from harness.store.files import explain_write_errors, write_atomic
from harness.training.progress import Progress

_KEEP = 2


_MANIFEST, _PROGRESS = "manifest.json", "progress.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Adapter weights, the optimiser's state by ``<parameter>/<key>``, the stage's best weights, and progress."""

    adapter: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Whose checkpoints these are. spec: as in spec.json, to say what differs; empty where it is not known."""

    run_id: str
    spec: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The newest good checkpoint, None where there is none, and what was wrong with newer ones."""

    path: Path | None
    checkpoint: Checkpoint | None
    damaged: tuple[str, ...]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, owner: Owner) -> Path:
    """Write the next number aside, rename it, and remove all but the newest two.

    Raises: StoreError where the disk is full; the checkpoints before are kept.
    """
    tensors = {"adapter": checkpoint.adapter, "optimiser": checkpoint.optimiser, "best": checkpoint.best}
    files = {f"{n}.safetensors": save({k: v.contiguous() for k, v in t.items()}) for n, t in tensors.items()}
    files[_PROGRESS] = json.dumps(vars(checkpoint.progress), ensure_ascii=False).encode()
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


def load_newest(folder: Path, owner: Owner) -> Found:
    """The newest good checkpoint of this run. Raises: StoreError for a checkpoint of another spec."""
    damaged: list[str] = []
    for path in reversed(_numbered(folder)):
        try:
            return Found(path=path, checkpoint=_load(path, owner), damaged=tuple(damaged))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            damaged.append(f"checkpoint {path} is damaged ({error}); the one before it is used")
    if damaged:
        damaged.append("no good checkpoint is left: training starts again")
    return Found(path=None, checkpoint=None, damaged=tuple(damaged))


def _load(path: Path, owner: Owner) -> Checkpoint:
    manifest = json.loads((path / _MANIFEST).read_bytes())
    if manifest["run_id"] != owner.run_id:
        raise StoreError(
            f"{path} belongs to run {manifest['run_id'][:8]}, not to {owner.run_id[:8]}"
            f"{_difference(manifest['spec'], owner.spec)}. "
            f"Remove {path.parent} to train this run from the start, or give the other run's command"
        )
    data = {name: (path / name).read_bytes() for name in manifest["sha256"]}
    for name, digest in manifest["sha256"].items():
        if hashlib.sha256(data[name]).hexdigest() != digest:
            raise ValueError(f"wrong hash of {name}")
    progress = Progress(**json.loads(data[_PROGRESS]))
    progress.looks = [(int(step), float(score)) for step, score in progress.looks]
    return Checkpoint(
        adapter=load(data["adapter.safetensors"]),
        optimiser=load(data["optimiser.safetensors"]),
        best=load(data["best.safetensors"]),
        progress=progress,
    )


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """``: train.lr is 0.001 there and 0.01 here`` for every key that differs; empty where a spec is not known."""
    there, here = _flat(theirs), _flat(ours)
    keys = [k for k in sorted(there.keys() | here.keys()) if there.get(k) != here.get(k)] if there and here else []
    told = [f"{k} is {there.get(k)!r} there and {here.get(k)!r} here" for k in keys]
    return ": " + "; ".join(told) if told else ""


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, part in value.items():
        found |= _flat(part, f"{prefix}{key}.") if isinstance(part, dict) else {f"{prefix}{key}": part}
    return found


def _numbered(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.name.isdigit()) if folder.is_dir() else []
