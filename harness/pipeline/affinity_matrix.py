"""The affinity matrix of several runs with its clusters; and what runs have measured while they trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config.spec import RunSpec, canonical
from harness.errors import UsageError
from harness.scoring.affinity_clusters import (
    Floats,
    clusterings,
    deviation_of,
    mean_of,
    overlapping,
    to_array,
    to_matrix,
)
from harness.scoring.partitions import Rules, Value
from harness.store.affinity import FILE, FOLDER, Affinity, AffinityRun, Way, folder_name, read_measured
from harness.store.files import to_bytes, write_atomic
from harness.store.finished import open_finished
from harness.task import Suite


@dataclass(frozen=True, kw_only=True)
class AffinityChoices:
    """How clusters are chosen, see ``Rules``. largest: None for no limit. overlap: also find groups that overlap."""

    smallest: int = 1
    largest: int | None = None
    value: Value = "sum"
    overlap: bool = False


def affinity_of(matrices: Mapping[Path, Floats], way: Way, suite: Suite, choices: AffinityChoices) -> Affinity:
    """The affinity of the tasks of finished runs, by their folders, that differ only in their seeds.

    Raises: UsageError for runs that differ in more; DataError for a pair of tasks that no run has measured.
    """
    records = {path: open_finished(path).record for path in matrices}
    spec = same_but_seed({path: record.spec for path, record in records.items()})
    assert spec.model is not None
    tasks = tuple(spec.suite.tasks)
    kinds = tuple(suite.tasks[task].kind for task in tasks)
    rules = Rules(smallest=choices.smallest, largest=choices.largest or len(tasks), value=choices.value)
    found = list(matrices.values())
    deviation = deviation_of(found)
    return Affinity(
        way=way,
        method=spec.method.name,
        suite=spec.suite,
        model=spec.model,
        data=spec.data,
        split="dev" if way == "transfer" else "train",
        tasks=tasks,
        kinds=kinds,
        runs=tuple(
            AffinityRun(run=path.name, run_id=record.run_id, seed=record.spec.seed, values=to_matrix(matrices[path]))
            for path, record in records.items()
        ),
        mean=to_matrix(mean_of(found)),
        sd=None if deviation is None else to_matrix(deviation),
        min_size=rules.smallest,
        max_size=rules.largest,
        value=rules.value,
        clusters=clusterings(found, tasks, kinds, rules),
        overlapping=overlapping(found, tasks, rules) if choices.overlap else (),
    )


def same_but_seed(specs: Mapping[Path, RunSpec]) -> RunSpec:
    """The spec that runs have in common. Raises: UsageError if they differ, or cannot have an affinity."""
    first, spec = next(iter(specs.items()))
    for path, other in specs.items():
        if other.clusters is not None:
            raise UsageError(f"{path.name} has one adapter for each cluster of tasks: give runs without --clusters")
        if other.model is None:
            raise UsageError(f"{path.name} has no base model: give runs of a method that trains")
        if len(other.suite.tasks) < 3:
            raise UsageError(f"{path.name} has {len(other.suite.tasks)} tasks: give runs with at least 3")
        if without_seed(other) != without_seed(spec):
            raise UsageError(
                f"{path.name} and {first.name} differ in more than their seeds: give runs that differ in nothing else"
            )
    seeds = [other.seed for other in specs.values()]
    if len(set(seeds)) < len(seeds):
        raise UsageError("two of the runs have the same seed: give each run once")
    return spec


def without_seed(spec: RunSpec) -> bytes:
    """The identity of a run without its seed and without what only evaluation uses."""
    return canonical(spec.model_copy(update={"seed": 0, "eval": type(spec.eval)()}))


def measured_by(paths: Sequence[Path], way: Way) -> dict[Path, Floats]:
    """What runs have measured while they trained. Raises: UsageError for a run that has not measured it."""
    found = {}
    for path in paths:
        measured = read_measured(open_finished(path).run)
        if measured is None or way not in measured.ways:
            value = "true" if way == "gradients" else way
            raise UsageError(
                f"{path.name} has no affinity by {way}, which is measured while a run trains. Add "
                f"--set train.affinity={value} to its harness run command, with another --out"
            )
        found[path] = to_array(measured.ways[way])
    return found


def write_affinity(out: Path, affinity: Affinity) -> Path:
    """Write affinity.json into a folder of its own in the folder of runs. Returns: this folder."""
    choices = (affinity.min_size, affinity.max_size, affinity.value, bool(affinity.overlapping))
    name = folder_name(affinity.suite.name, affinity.way, [run.run_id for run in affinity.runs], choices)
    folder = out / FOLDER / name
    write_atomic(folder / FILE, to_bytes(affinity))
    return folder
