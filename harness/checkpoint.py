"""Checkpoints: a folder written aside and renamed, every file hashed; the newest good one wins."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from harness.errors import StoreError
from harness.store import no_space_is_an_error, write_atomic

_KEEP = 2


@dataclass(kw_only=True)
class Progress:
    """How far training is; JSON values only.

    stage and step: the unfinished stage and its finished steps. log_bytes: the length of train.jsonl at this point.
    """

    stage: str | None = None
    step: int = 0
    finished: list[str] = field(default_factory=list)
    remembered: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    recent_losses: list[float] = field(default_factory=list)
    log_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Adapter weights, the optimiser's state by ``<parameter>/<key>``, and progress."""

    adapter: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    progress: Progress


def save_checkpoint(folder: Path, number: int, checkpoint: Checkpoint, run_id: str) -> None:
    """Write ``folder/<number>`` aside, rename it, and remove all but the newest two."""
    files = {
        "adapter.safetensors": save({k: v.contiguous() for k, v in checkpoint.adapter.items()}),
        "optimiser.safetensors": save({k: v.contiguous() for k, v in checkpoint.optimiser.items()}),
        "progress.json": json.dumps(vars(checkpoint.progress), ensure_ascii=False).encode(),
    }
    manifest = {"run_id": run_id, "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
    aside, final = folder / f".{number:08d}.tmp", folder / f"{number:08d}"
    with no_space_is_an_error(folder):
        for stale in folder.glob(".*.tmp"):
            shutil.rmtree(stale)
        try:
            for name, data in files.items():
                write_atomic(aside / name, data)
            write_atomic(aside / "manifest.json", json.dumps(manifest).encode())
            if final.exists():
                shutil.rmtree(final)
            aside.rename(final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    for old in _numbered(folder)[:-_KEEP]:
        shutil.rmtree(old)


def load_newest(folder: Path, run_id: str) -> tuple[int, Checkpoint, list[str]] | None:
    """The newest good checkpoint, its number, and what was wrong with newer ones; None where there is none.

    Raises: StoreError for a checkpoint of another spec.
    """
    damaged: list[str] = []
    for path in reversed(_numbered(folder)):
        try:
            return int(path.name), _load(path, run_id), damaged
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            damaged.append(f"checkpoint {path} is damaged ({error}); the one before it is used")
    return None


def next_number(folder: Path) -> int:
    """The number of the next checkpoint."""
    existing = _numbered(folder)
    return int(existing[-1].name) + 1 if existing else 1


def _load(path: Path, run_id: str) -> Checkpoint:
    manifest = json.loads((path / "manifest.json").read_bytes())
    if manifest["run_id"] != run_id:
        raise StoreError(
            f"{path} belongs to run {manifest['run_id'][:8]}, not to {run_id[:8]}: "
            "remove this run's checkpoints folder to train it from the start"
        )
    data = {name: (path / name).read_bytes() for name in manifest["sha256"]}
    for name, digest in manifest["sha256"].items():
        if hashlib.sha256(data[name]).hexdigest() != digest:
            raise ValueError(f"wrong hash of {name}")
    return Checkpoint(
        adapter=load(data["adapter.safetensors"]),
        optimiser=load(data["optimiser.safetensors"]),
        progress=Progress(**json.loads(data["progress.json"])),
    )


def _numbered(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.name.isdigit()) if folder.is_dir() else []
