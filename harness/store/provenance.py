"""The provenance of a run: commit, package versions, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.store.machine import hardware
from harness.store.record import Provenance

_PACKAGES = [
    "mtlora-harness",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "datasets",
    "numpy",
    "scikit-learn",
    "rouge-chinese",
    "rapidfuzz",
    "jieba",
    "seqeval",
    "peft",
    "nevergrad",
    "lm_eval",
    "gguf",
    "bitsandbytes",
    "torchao",
]


def gather(data: dict[str, Any], settings: dict[str, Any]) -> Provenance:
    """Collect the commit, package versions, hardware and command of this process.

    data, settings: further values, which are stored as given.
    """
    commit, dirty = _commit(Path(__file__).parents[2])
    return Provenance(
        commit=commit,
        dirty=dirty,
        packages={p: v for p in _PACKAGES if (v := _version(p)) is not None},
        python=platform.python_version(),
        hardware=hardware(),
        command=["harness", *sys.argv[1:]],
        data=data,
        settings={**settings, "processes": int(os.environ.get("WORLD_SIZE", "1"))},
    )


def _commit(folder: Path) -> tuple[str | None, bool | None]:
    if not (folder / ".git").exists():
        return None, None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
