"""The best clusters of an affinity matrix, with what says whether they mean anything.

The best partition of a matrix is above random ones on that matrix by construction. Its value on a run that took no part
in the choice is not: that is the null that counts, and it needs two runs. Whether single runs choose the same clusters
is the second one.

Shapes: R runs, T tasks; matrices (T, T) have a line for each source and a column for each recipient.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.scoring.partitions import (
    Partition,
    Rules,
    Value,
    adjusted_rand,
    best_overlapping,
    best_partitions,
    labels,
    partition_value,
    random_values,
)
from harness.seeding import stable_seed
from harness.store.affinity import Clustering, Matrix, Null, OverlappingGroups

Floats = NDArray[np.float64]
N_RANDOM: Final = 1000


def to_array(matrix: Matrix) -> Floats:
    """(T, T), NaN where the affinity is unknown."""
    return np.array([[np.nan if value is None else value for value in line] for line in matrix], dtype=np.float64)


def to_matrix(values: Floats) -> Matrix:
    """The inverse of ``to_array``."""
    return tuple(tuple(None if np.isnan(value) else float(value) for value in line) for line in values)


def mean_of(matrices: Sequence[Floats]) -> Floats:
    """The mean over the runs that measured a pair, (T, T); NaN if none did."""
    stacked = np.stack(matrices)
    counts = (~np.isnan(stacked)).sum(0)
    return np.where(counts > 0, np.nansum(stacked, 0) / np.maximum(counts, 1), np.nan)


def deviation_of(matrices: Sequence[Floats]) -> Floats | None:
    """The standard deviation over runs, (T, T); None with a single run, NaN for pairs that fewer than two measured."""
    if len(matrices) < 2:
        return None
    stacked = np.stack(matrices)
    counts = (~np.isnan(stacked)).sum(0)
    squares = np.nansum((stacked - mean_of(matrices)) ** 2, 0)
    return np.where(counts > 1, np.sqrt(squares / np.maximum(counts - 1, 1)), np.nan)


def complete(values: Floats, tasks: Sequence[str]) -> Floats:
    """The matrix with zeros on its diagonal, which no value of a cluster uses.

    Raises: DataError if a pair of tasks was not measured.
    """
    values = np.where(np.eye(len(values), dtype=bool), 0.0, values)
    for i, j in np.argwhere(np.isnan(values)).tolist():
        raise DataError(
            f"the affinity of {tasks[i]} for {tasks[j]} was not measured, since no measured step had examples of both: "
            "give more runs, more train.steps, a larger train.batch_size or a smaller train.affinity_every"
        )
    return values


def clusterings(
    matrices: Sequence[Floats], tasks: Sequence[str], kinds: Sequence[str], rules: Rules
) -> tuple[Clustering, ...]:
    """The best partition of the mean matrix for each k from 2 to T - 1 that the rules allow."""
    mean = complete(mean_of(matrices), tasks)
    ks = range(2, len(tasks))
    chosen = best_partitions(mean, ks, rules)
    n_runs = len(matrices)
    # A run that did not measure a pair has the mean of the others for it.
    single = [complete(np.where(np.isnan(one), mean, one), tasks) for one in matrices]
    alone = [best_partitions(one, ks, rules) for one in single] if n_runs > 1 else []
    others = (
        [best_partitions(mean_of([m for j, m in enumerate(single) if j != i]), ks, rules) for i in range(n_runs)]
        if n_runs > 1
        else []
    )
    return tuple(
        Clustering(
            k=k,
            groups=tuple(tuple(tasks[t] for t in group) for group in partition),
            null=_null(mean, partition, single, [by_k[k] for by_k in others], rules.value),
            stability=_stability([by_k[k] for by_k in alone], len(tasks)),
            kind=adjusted_rand(labels(partition, len(tasks)), kinds),
        )
        for k, partition in chosen.items()
    )


def overlapping(matrices: Sequence[Floats], tasks: Sequence[str], rules: Rules) -> tuple[OverlappingGroups, ...]:
    """The best groups that may overlap, for each number of them up to T - 1. Raises: UsageError for too many groups."""
    mean = complete(mean_of(matrices), tasks)
    found = []
    for k in range(2, len(tasks)):
        best = best_overlapping(mean, k, rules)
        found.append(
            OverlappingGroups(
                k=k,
                groups=tuple(tuple(tasks[t] for t in group) for group in best.groups),
                served_by=dict(zip(tasks, best.served_by, strict=True)),
                value=best.value,
            )
        )
    return tuple(found)


def _null(
    mean: Floats, partition: Partition, single: Sequence[Floats], others: Sequence[Partition], value: Value
) -> Null:
    """The value of a partition next to ``N_RANDOM`` random ones of its sizes.

    Args:
        single: the matrix of each run. others: for each run, the partition that the other runs choose; empty with one.
    """

    def percentile(matrix: Floats, chosen: Partition, what: object) -> float:
        return _percentile(partition_value(matrix, chosen, value), drawn(matrix, chosen, what))

    def drawn(matrix: Floats, chosen: Partition, what: object) -> Floats:
        return random_values(matrix, [len(group) for group in chosen], value, N_RANDOM, _rng(what))

    held_out = [percentile(one, chosen, i) for i, (one, chosen) in enumerate(zip(single, others, strict=False))]
    return Null(
        value=partition_value(mean, partition, value),
        random_mean=float(drawn(mean, partition, "all").mean()),
        percentile=percentile(mean, partition, "all"),
        held_out=float(np.mean(held_out)) if held_out else None,
    )


def _percentile(value: float, drawn: Floats) -> float:
    """The share of the random values below a value, in percent; equal ones, the same partition, count half."""
    equal = np.isclose(drawn, value, rtol=1e-9, atol=0.0)
    return float(100 * ((drawn < value) & ~equal).mean() + 50 * equal.mean())


def _rng(what: object) -> np.random.Generator:
    return np.random.default_rng(stable_seed("random partitions", what))


def _stability(partitions: Sequence[Partition], n_tasks: int) -> float | None:
    """The mean adjusted Rand index over pairs of runs; None with fewer than two."""
    found = [labels(partition, n_tasks) for partition in partitions]
    indices = [adjusted_rand(one, other) for one, other in combinations(found, 2)]
    return float(np.mean(indices)) if indices else None


def rank_correlation(one: Floats, other: Floats) -> float | None:
    """Spearman's correlation of the affinities of different tasks; None for matrices of constant values.

    A symmetric matrix is compared as it is, so that each of its values counts twice.
    """
    from scipy.stats import spearmanr

    different = ~np.eye(len(one), dtype=bool) & ~np.isnan(one) & ~np.isnan(other)
    values = one[different], other[different]
    if any(len(set(of.tolist())) < 2 for of in values):
        return None
    return float(spearmanr(*values).statistic)
