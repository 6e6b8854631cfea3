"""Clusters that are computed: the best ones of an affinity matrix, or a random partition as their null."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from harness.config.clusters import AffinityChoice, RandomChoice, label_of, parse_measured
from harness.config.request import Request
from harness.config.spec import ClusterSpec, DataSpec, ModelSpec
from harness.errors import UsageError
from harness.models.loading import identify
from harness.pipeline.affinity_matrix import AffinityChoices, affinity_of, measured_by, without_seed, write_affinity
from harness.scoring.partitions import Partition, n_partitions, random_partition
from harness.seeding import stable_seed
from harness.store.affinity import FILE, FOLDER, WAYS, Affinity, Way, read_affinity, read_measured
from harness.store.run_directory import State, find_runs, folder_for_all_runs
from harness.task import Suite

LOG: Final = logging.getLogger(__name__)
RUNS: Final = Path("runs")  # the default of --out
DEFAULT_WAY: Final[Way] = "gradients"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a matrix must be about to choose the clusters of a run. model: its source."""

    suite: Suite
    tasks: Sequence[str]
    data: DataSpec
    model: str | None

    def is_asked(self, tasks: Sequence[str], data: DataSpec, model: ModelSpec | None) -> bool:
        """Whether runs on these tasks, data and base model answer it."""
        return (
            set(tasks) == set(self.tasks)
            and self.suite.same_data(data.fingerprints, self.data.fingerprints)
            and self.model is not None
            and model is not None
            and identify(self.model).fingerprint == model.fingerprint
        )


def with_computed_clusters(request: Request, question: Question, out: Path) -> Request:
    """The request with the tasks of each cluster in place of ``affinity:…`` and ``random:…``.

    Raises: UsageError for a choice that is not possible; StoreError for a file that is not an affinity.json.
    """
    choice = request.options.get("clusters")
    measured = parse_measured(choice)
    if measured is None or not isinstance(choice, str):
        return request
    groups = (
        _random(measured, question.tasks, choice)
        if isinstance(measured, RandomChoice)
        else _of_affinity(measured, question, out, choice)
    )
    spec = ClusterSpec(label=label_of(choice), groups=name_groups(groups))
    return dataclasses.replace(request, options={**request.options, "clusters": spec.model_dump(mode="json")})


def name_groups(groups: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The groups as clusters with the names c1, c2, ..."""
    return {f"c{number}": tuple(tasks) for number, tasks in enumerate(groups, start=1)}


def _random(choice: RandomChoice, tasks: Sequence[str], text: str) -> list[list[str]]:
    """A partition that depends only on the tasks, the sizes and the draw, and is that of no other draw."""
    n_tasks, k = len(tasks), choice.k
    sizes = choice.sizes or tuple(n_tasks // k + (i < n_tasks % k) for i in range(k))
    if sum(sizes) != n_tasks or min(sizes) < 1:
        raise UsageError(
            f"--clusters {text}: the clusters hold {sum(choice.sizes) or k} tasks or more, and the run has {n_tasks}: "
            f"give sizes that add up to {n_tasks}, or at most {n_tasks} clusters"
        )
    ordered, sizes = sorted(tasks), tuple(sorted(sizes, reverse=True))
    if choice.draw >= (n := n_partitions(sizes)):
        raise UsageError(
            f"--clusters {text}: there are {n} partitions into clusters of these sizes: give a DRAW from 0 to {n - 1}"
        )
    drawn: list[Partition] = []
    for draw in range(choice.draw + 1):
        rng = np.random.default_rng(stable_seed("clusters", *ordered, *sizes, draw))
        drawn.append(random_partition(sizes, rng, other_than=drawn))
    return [[ordered[task] for task in group] for group in drawn[-1]]


def _of_affinity(choice: AffinityChoice, question: Question, out: Path, text: str) -> Sequence[Sequence[str]]:
    """The best clusters of the matrix that the choice names, or of the one in the folder of runs."""
    if choice.source is not None and choice.source not in WAYS:
        file = Path(choice.source)
        return _clusters(read_affinity(file / FILE if file.is_dir() else file), choice.k, text)
    way = next((way for way in WAYS if way == choice.source), DEFAULT_WAY)
    found = _find(question, way, out) or _from_runs(question, way, out, text)
    by_file = {file: _clusters(affinity, choice.k, text) for file, affinity in found.items()}
    if len({frozenset(map(frozenset, groups)) for groups in by_file.values()}) > 1:
        raise UsageError(
            f"--clusters {text}: several matrices by {way} give different clusters ({', '.join(map(str, by_file))}). "
            f"Name one of them: affinity:{choice.k}:FILE"
        )
    file, groups = next(iter(by_file.items()))
    LOG.info("clusters of %s", file)
    return groups


def _clusters(affinity: Affinity, k: int, text: str) -> Sequence[Sequence[str]]:
    found = affinity.clustering(k)
    if found is None:
        known = ", ".join(str(one.k) for one in affinity.clusters)
        raise UsageError(f"--clusters {text}: the matrix has clusters for K = {known}: choose one of these")
    return found.groups


def _find(question: Question, way: Way, out: Path) -> dict[Path, Affinity]:
    """The matrices of this way that are about the question, by file."""
    found = {}
    for file in sorted((folder_for_all_runs(out) / FOLDER).glob(f"*/{FILE}")):
        affinity = read_affinity(file)
        if affinity.way == way and question.is_asked(affinity.tasks, affinity.data, affinity.model):
            found[file] = affinity
    return found


def _from_runs(question: Question, way: Way, out: Path, text: str) -> dict[Path, Affinity]:
    """The matrix of the runs that have measured it, which is stored so that later runs have the same clusters.

    Raises: UsageError if there are no such runs, or if they differ in more than their seeds.
    """
    by_spec: dict[bytes, list[Path]] = {}
    for run in find_runs(folder_for_all_runs(out)):
        spec = run.spec()
        if spec is None or spec.clusters is not None or run.state() is not State.DONE:
            continue
        measured = read_measured(run)
        if measured is None or way not in measured.ways:
            continue
        if question.is_asked(tuple(spec.suite.tasks), spec.data, spec.model):
            by_spec.setdefault(without_seed(spec), []).append(run.path)
    if len(by_spec) != 1:
        what = "no run has" if not by_spec else "runs with different settings have"
        raise UsageError(
            f"--clusters {text}: {what} measured the affinity of these tasks by {way} in {folder_for_all_runs(out)}. "
            f"Compute the matrix first: harness affinity RUN… --way {way} --out {folder_for_all_runs(out)}"
        )
    (paths,) = by_spec.values()
    LOG.info("affinity of the tasks from %s", ", ".join(path.name for path in paths))
    affinity = affinity_of(measured_by(paths, way), way, question.suite, AffinityChoices())
    return {write_affinity(folder_for_all_runs(out), affinity) / FILE: affinity}
