"""The log of a training: train.jsonl, a JSON object per line for each step and each evaluation on dev."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from harness.store.files import append_lines


@dataclass(frozen=True, kw_only=True)
class TrainLog:
    """The file ``path``, which only rank 0 writes."""

    path: Path
    processes: ProcessGroup = SINGLE_PROCESS

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line to disk."""
        if self.processes.is_main:
            append_lines(self.path, [json.dumps(line, ensure_ascii=False)])

    def n_bytes(self) -> int:
        """The length of the file; 0 before the first line."""
        return self.path.stat().st_size if self.path.exists() else 0

    def truncate(self, n_bytes: int) -> None:
        """Remove what was written after the first ``n_bytes``: steps since the checkpoint, which will be repeated."""
        if self.processes.is_main and self.n_bytes() > n_bytes:
            os.truncate(self.path, n_bytes)
