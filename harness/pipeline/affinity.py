"""The affinity of tasks from finished runs, one matrix for each run.

- updates: the cosine of the tasks' updates of the weights, from runs in which each task has weights of its own
- gradients, lookahead: what runs have measured while they trained (``train.affinity``)
- transfer: the score of each task with the weights of another one, minus that of the base model; on dev, so that
  clusters are not chosen on the examples that are reported
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.config.clusters import clusters_of
from harness.config.spec import RunSpec
from harness.config.suites import suite_of
from harness.errors import UsageError
from harness.method import Trait, adapter_method
from harness.pipeline.affinity_matrix import AffinityChoices, affinity_of, measured_by, same_but_seed
from harness.pipeline.prepare import Base, attach, load_base, train_examples
from harness.pipeline.reopen import ReopenedRun, reopen
from harness.pipeline.transfer import transfer
from harness.registry import method_class
from harness.scoring.affinity_clusters import Floats
from harness.store.adapter import load_into
from harness.store.affinity import Affinity, Way, read_measured
from harness.store.finished import open_finished

if TYPE_CHECKING:
    from torch import Tensor

    from harness.method import LoRAFactors


@dataclass(frozen=True, kw_only=True)
class Located:
    """The current locations of data and model, if they have moved. keys: ``eval.*`` of a transfer matrix."""

    data: str | None = None
    model: str | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)


def measure(paths: Sequence[Path], way: Way, choices: AffinityChoices, where: Located) -> Affinity:
    """The affinity of the tasks of finished runs that differ only in their seeds.

    Raises: UsageError for runs that differ in more than the seed, or that the way does not apply to; DataError for
        pairs of tasks that were not measured; errors of ``harness.pipeline.reopen``.
    """
    spec = same_but_seed({path: open_finished(path).record.spec for path in paths})
    if way == "updates":
        matrices = _updates(paths, where)
    elif way == "transfer":
        matrices = _transfers(paths, where)
    else:
        matrices = measured_by(paths, way)
    return affinity_of(matrices, way, suite_of(spec.suite), choices)


def ways_of(path: Path) -> list[Way]:
    """The ways that need no evaluation of a finished run: its tasks' updates, and what it has measured."""
    finished = open_finished(path)
    measured = read_measured(finished.run)
    found: list[Way] = ["updates"] if _has_own_updates(finished.record.spec) else []
    return [*found, *(measured.ways if measured is not None else ())]


def _has_own_updates(spec: RunSpec) -> bool:
    """Whether each task has an update of the weights of its own, which is one LoRA."""
    traits = method_class(spec.method.name).traits
    return {Trait.ROUTED, Trait.FOLDS} <= traits and Trait.LABEL_FREE not in traits


def _updates(paths: Sequence[Path], where: Located) -> dict[Path, Floats]:
    """The base model is loaded once for all runs."""
    found: dict[Path, Floats] = {}
    base: Base | None = None
    for path in paths:
        finished = reopen(path, where.data, where.model)
        spec = finished.resolved.spec
        if not _has_own_updates(spec):
            raise UsageError(
                f"{path.name}: the tasks of {spec.method.name} have no updates of the weights of their own. Give runs "
                "of a method with an adapter or a gate for each task, or another --way"
            )
        if base is None:
            base = load_base(finished.resolved, train_examples(finished.resolved))
        found[path] = _updates_of(finished, base)
    return found


def _updates_of(finished: ReopenedRun, base: Base) -> Floats:
    (cluster,) = clusters_of(finished.resolved.spec)
    prepared = attach(finished.resolved, base, cluster)
    try:
        if adapter_method(finished.resolved.method).trains:
            load_into(finished.run.adapter, prepared.adapter)
        folded = [prepared.adapter.fold(task) for task in cluster.tasks]
    finally:
        prepared.adapter.detach()
    return cosines_of_updates(folded)


def cosines_of_updates(folded: Sequence[Mapping[str, LoRAFactors]]) -> Floats:
    """The cosine of the tasks' updates B A of all layers together, (T, T); 0 for an update of zeros.

    In factors: <B_i A_i, B_j A_j> = tr((B_j^T B_i) (A_i A_j^T)), which no rotation of the rank changes.
    """
    products = np.zeros((len(folded), len(folded)))
    for name in folded[0]:
        layers = [factors[name] for factors in folded]
        for i, one in enumerate(layers):
            for j, other in enumerate(layers[: i + 1]):
                products[i, j] += float((_gram(other.b.t(), one.b.t()) * _gram(other.a, one.a)).sum())
                products[j, i] = products[i, j]
    norms = np.sqrt(np.diag(products))
    scale = np.where(norms > 0, norms, 1.0)
    cosines: Floats = products / scale[:, None] / scale
    return cosines


def _gram(one: Tensor, other: Tensor) -> Tensor:
    """one other^T, (r, r'), in float64."""
    return one.double() @ other.double().t()


def _transfers(paths: Sequence[Path], where: Located) -> dict[Path, Floats]:
    found = {}
    for path in paths:
        done = transfer(path, {**where.keys, "eval.split": "dev"}, data=where.data, model=where.model).transfer
        protocol = next(iter(done.base.root))
        gains = [
            [_gain(done.value(protocol, owner, task), done.value(protocol, None, task)) for task in done.tasks]
            for owner in done.tasks
        ]
        found[path] = np.array(gains)
    return found


def _gain(value: float | None, base: float | None) -> float:
    return np.nan if value is None or base is None else value - base
