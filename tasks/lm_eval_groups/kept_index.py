"""What lm-eval's index gives for some names, kept on disk, since reading its 14,000 task files takes many seconds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from harness.hashing import cache_folder
from tasks.lm_eval_groups.config import TASKS
from tasks.lm_eval_groups.index import Leaf, Leaves, find_leaves, open_index, quiet


def leaves_of(names: Sequence[str], included: Path | None) -> Leaves:
    """The leaf tasks of some names. included: the user's folder of task files, which is read each time.

    Raises: UsageError as ``open_index``.
    """
    entry = None if included is not None else _entry(names)
    kept = None if entry is None else _read(entry)
    if kept is not None:
        return kept
    with quiet():
        found = find_leaves(open_index(names, included), names)
    # What is kept and what is not has gone through JSON, so that runs of both have the same identity.
    content = json.dumps(
        {"found": [asdict(leaf) for leaf in found.found.values()], "left_out": found.left_out}, default=str
    )
    if entry is not None:
        _write(entry, content)
    return _parsed(content)


def _entry(names: Sequence[str]) -> Path:
    """The file for these names, in this version of lm-eval, with its task files as they are now."""
    changed = [file.stat().st_mtime_ns for file in TASKS.rglob("*.yaml")]
    key = json.dumps([1, version("lm_eval"), str(TASKS), len(changed), max(changed, default=0), list(names)])
    return cache_folder() / "lm-eval" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _read(entry: Path) -> Leaves | None:
    """The leaves of a file; None if it is missing or damaged, so that they are found again."""
    try:
        return _parsed(entry.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _parsed(content: str) -> Leaves:
    found = json.loads(content)
    return Leaves(found={leaf["name"]: Leaf(**leaf) for leaf in found["found"]}, left_out=dict(found["left_out"]))


def _write(entry: Path, content: str) -> None:
    with contextlib.suppress(OSError):  # without a folder that can be written, the index is read each time
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=entry.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(content)
        Path(aside).replace(entry)
