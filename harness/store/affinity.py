"""Affinity on disk: what a run has measured while it trained, and the matrix of several runs with its clusters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError, model_validator

from harness.config.spec import DataSpec, ModelSpec, SuiteSpec
from harness.errors import StoreError
from harness.store.record import Frozen
from harness.store.run_directory import RunDirectory, parse_file

ARTEFACT: Final = "affinity"  # artefacts/affinity.json of a run
FOLDER: Final = "affinity"  # in the folder of runs
FILE: Final = "affinity.json"

Way = Literal["updates", "gradients", "lookahead", "transfer"]
WAYS: Final[tuple[Way, ...]] = ("updates", "gradients", "lookahead", "transfer")
DIRECTED: Final[Mapping[Way, bool]] = {"updates": False, "gradients": True, "lookahead": True, "transfer": True}

# values[i][j]: of source i for recipient j; None if it was not measured.
Matrix = tuple[tuple[float | None, ...], ...]


class MeasuredAffinity(Frozen):
    """artefacts/affinity.json of a run: mean affinities by way, and how many steps measured each pair.

    in_one_pass: the steps' own backward passes gave all gradients; otherwise passes of their own did.
    """

    tasks: tuple[str, ...]
    lines: Literal["source"] = "source"
    columns: Literal["recipient"] = "recipient"
    steps: tuple[tuple[int, ...], ...]
    in_one_pass: bool
    ways: dict[Way, Matrix]


class AffinityRun(Frozen):
    """The matrix of one run."""

    run: str
    run_id: str
    seed: int
    values: Matrix


class Null(Frozen):
    """The value of a partition next to random partitions of the same sizes.

    value: on the mean matrix of all runs, on which the partition was chosen. percentile: the share of the random
        partitions with a smaller value, in percent; it is high by construction, since the partition is the best one.
    held_out: the same for a partition that is chosen on the other runs and valued on one run, averaged over the runs;
        None with a single run.
    """

    value: float
    random_mean: float
    percentile: float
    held_out: float | None


class Clustering(Frozen):
    """The best partition into k clusters.

    stability: the mean adjusted Rand index of the partitions of single runs, over pairs of runs; None with one run.
    kind: the adjusted Rand index with the tasks' kinds.
    """

    k: int
    groups: tuple[tuple[str, ...], ...]
    null: Null
    stability: float | None
    kind: float


class OverlappingGroups(Frozen):
    """At most k groups that may overlap; each task is served by the one of its groups with the best value."""

    k: int
    groups: tuple[tuple[str, ...], ...]
    served_by: dict[str, int]
    value: float


class Affinity(Frozen):
    """affinity.json: a matrix with its spread over runs, and the best clusters for each number of clusters.

    values[i][j] is the affinity of source i for recipient j. sd: over runs; None with one run.
    split: the examples that it was measured on. min_size, max_size: limits on the size of a cluster. value: what a
        cluster is worth, see ``harness.scoring.partitions``.
    """

    schema_version: int = Field(1, ge=1, le=1)
    way: Way
    lines: Literal["source"] = "source"
    columns: Literal["recipient"] = "recipient"
    method: str
    suite: SuiteSpec
    model: ModelSpec
    data: DataSpec
    split: str
    tasks: tuple[str, ...]
    kinds: tuple[str, ...]
    runs: tuple[AffinityRun, ...] = Field(min_length=1)
    mean: Matrix
    sd: Matrix | None
    min_size: int
    max_size: int
    value: Literal["sum", "mean"]
    clusters: tuple[Clustering, ...]
    overlapping: tuple[OverlappingGroups, ...] = ()

    @model_validator(mode="after")
    def _square(self) -> Affinity:
        n = len(self.tasks)
        for matrix in (self.mean, *(run.values for run in self.runs)):
            if len(matrix) != n or any(len(line) != n for line in matrix):
                raise ValueError(f"a matrix of {n} tasks has {n} lines of {n} values")
        return self

    @property
    def directed(self) -> bool:
        """Whether the affinity of i for j may differ from that of j for i."""
        return DIRECTED[self.way]

    def clustering(self, k: int) -> Clustering | None:
        """The clusters for one k; None if the file has none."""
        return next((found for found in self.clusters if found.k == k), None)


def read_measured(run: RunDirectory) -> MeasuredAffinity | None:
    """What a run has measured while it trained; None if it has measured nothing. Raises: StoreError."""
    file = run.artefacts / f"{ARTEFACT}.json"
    return parse_file(file, file.read_bytes(), MeasuredAffinity) if file.exists() else None


def read_affinity(file: Path) -> Affinity:
    """A matrix of ``harness affinity``. Raises: StoreError for a file that is missing, damaged or another one."""
    try:
        return Affinity.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{file} does not exist: give the affinity.json that harness affinity has written") from error
    except (OSError, ValidationError) as error:
        reason = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
        raise StoreError(f"{file} is not a file of harness affinity ({reason}): run harness affinity again") from error


def folder_name(suite: str, way: Way, runs: Sequence[str], choices: Sequence[object]) -> str:
    """``planted-gradients-1a2b3c4d``: the same for the same runs and choices."""
    content = json.dumps([way, sorted(runs), [str(c) for c in choices]])
    return f"{suite.replace('/', '_')}-{way}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
