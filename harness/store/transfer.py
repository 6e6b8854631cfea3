"""The transfer matrices of a run, ``transfer/<hash of the settings>/transfer.json``."""

from __future__ import annotations

from typing import Final

from harness.store.record import EvaluationSettings, Frozen, Scores
from harness.store.run_directory import RunDirectory, parse_file

FILE: Final = "transfer.json"


class Transfer(Frozen):
    """transfer.json: the scores of every task, by the task whose weights were used; and those of the base model."""

    settings: EvaluationSettings
    tasks: tuple[str, ...]
    adapters: dict[str, Scores]
    base: Scores

    def value(self, protocol: str, owner: str | None, task: str) -> float | None:
        """The headline of a task with the weights of ``owner`` (None: of the base model); None without a score."""
        scores = self.base if owner is None else self.adapters[owner]
        return scores.root[protocol].tasks[task].value


def read_transfers(run: RunDirectory) -> list[Transfer]:
    """The complete matrices of a run, by the names of their folders. Raises: StoreError for a damaged file."""
    files = sorted(run.path.glob(f"transfer/*/{FILE}"))
    return [parse_file(file, file.read_bytes(), Transfer) for file in files]
