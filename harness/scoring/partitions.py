"""Partitions of tasks into clusters: the best one by an affinity matrix, exactly, and random ones.

The value of a cluster is a sum over its tasks. "sum" adds up the affinities of the other tasks for each: a task is
trained on the same number of examples in any clusters (``Mixture.plan``), so that effects of several tasks add up to
first order. "mean" takes their mean (Fifty et al., arXiv 2109.04617, where a group has a number of steps that does not
depend on its size). A task alone has the value 0, and the value of a partition is the sum over its clusters.

Shapes: T tasks; affinity (T, T), a line for each source and a column for each recipient. A set of tasks is a bit mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError

Floats = NDArray[np.float64]
Partition = tuple[tuple[int, ...], ...]  # the tasks of each cluster, by index

MOST_BY_SUBSETS: Final = (
    17  # the dynamic programme visits 3^T pairs of sets: seconds for 16 tasks, half a minute for 17
)
MOST_COLUMNS: Final = 60_000  # An integer programme has a variable for each group.


Value = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The smallest and the largest number of tasks of a cluster, and what a cluster is worth."""

    smallest: int
    largest: int
    value: Value = "sum"


def group_value(affinity: Floats, group: Sequence[int], value: Value) -> float:
    """The value of one cluster."""
    within = affinity[np.ix_(group, group)]
    total = float(within.sum() - np.trace(within))
    return total / max(1, len(group) - 1) if value == "mean" else total


def partition_value(affinity: Floats, partition: Iterable[Sequence[int]], value: Value) -> float:
    """The value of a partition."""
    return sum(group_value(affinity, group, value) for group in partition)


def best_partitions(affinity: Floats, ks: Sequence[int], rules: Rules) -> dict[int, Partition]:
    """The partition of the highest value into exactly k clusters, for each k for which one exists.

    Ties go to the partition that is found first, in an order that depends only on the matrix.
    Raises: UsageError for more tasks than can be searched with these rules.
    """
    n_tasks = len(affinity)
    possible = [k for k in ks if k * rules.smallest <= n_tasks <= k * rules.largest]
    if not possible:
        return {}
    if n_tasks <= MOST_BY_SUBSETS:
        return _by_subsets(affinity, possible, rules)
    return {k: found for k in possible if (found := _by_programme(affinity, k, rules)) is not None}


def _group_values(affinity: Floats, rules: Rules) -> Floats:
    """The value of each set of tasks, (2^T,), by bit mask; -inf for sets of a size that is not allowed."""
    n_tasks = len(affinity)
    both = affinity + affinity.T
    sums, counts = np.zeros(1 << n_tasks), np.zeros(1 << n_tasks, dtype=np.int64)
    for task in range(n_tasks):
        # Sets with this task as the largest one: those of smaller tasks, plus its affinities with their members.
        shared = np.zeros(1)
        for other in range(task):
            shared = np.concatenate([shared, shared + both[task, other]])
        sums[1 << task : 2 << task] = sums[: 1 << task] + shared
        counts[1 << task : 2 << task] = counts[: 1 << task] + 1
    allowed = (counts >= rules.smallest) & (counts <= rules.largest)
    values = sums / np.maximum(counts - 1, 1) if rules.value == "mean" else sums
    return np.where(allowed, values, -np.inf)


def _by_subsets(affinity: Floats, ks: Sequence[int], rules: Rules) -> dict[int, Partition]:
    """Dynamic programming over sets: best_k(S) = max v(G) + best_k-1(S - G) over G in S with its lowest task."""
    n_tasks, most = len(affinity), max(ks)
    values, full = _group_values(affinity, rules), (1 << n_tasks) - 1
    best = np.full((most + 1, 1 << n_tasks), -np.inf)
    best[0, 0] = 0.0
    choice = np.zeros((most + 1, 1 << n_tasks), dtype=np.int64)
    for whole in range(1, 1 << n_tasks):
        lowest = whole & -whole
        groups = _subsets(whole ^ lowest) | lowest
        totals = values[groups] + best[:-1, whole ^ groups]
        chosen = totals.argmax(1)
        best[1:, whole] = totals[np.arange(most), chosen]
        choice[1:, whole] = groups[chosen]
    found: dict[int, Partition] = {}
    for k in ks:
        if np.isfinite(best[k, full]):
            left, groups_of_k = full, []
            for level in range(k, 0, -1):
                group = int(choice[level, left])
                groups_of_k.append(tuple(t for t in range(n_tasks) if group >> t & 1))
                left ^= group
            found[k] = tuple(groups_of_k)
    return found


def _subsets(mask: int) -> NDArray[np.int64]:
    """Every subset of a bit mask, itself and the empty one among them."""
    found = np.zeros(1, dtype=np.int64)
    while mask:
        lowest = mask & -mask
        found = np.concatenate([found, found | lowest])
        mask ^= lowest
    return found


def _by_programme(affinity: Floats, k: int, rules: Rules) -> Partition | None:
    """An integer programme: a 0/1 variable for each allowed group; every task in one group, k groups."""
    from scipy.optimize import LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    n_tasks = len(affinity)
    groups = columns(n_tasks, replace(rules, largest=min(rules.largest, n_tasks - k + 1)))
    membership = _membership(groups, n_tasks)
    lines = vstack([membership, csr_array(np.ones((1, len(groups))))])
    wanted = np.array([*[1.0] * n_tasks, k])
    values = np.array([group_value(affinity, group, rules.value) for group in groups])
    solved = milp(-values, constraints=LinearConstraint(lines, wanted, wanted), integrality=1, bounds=(0, 1))
    if solved.x is None:
        return None
    return tuple(sorted(group for group, used in zip(groups, solved.x, strict=True) if used > 0.5))


def columns(n_tasks: int, rules: Rules) -> list[tuple[int, ...]]:
    """Every group of an allowed size. Raises: UsageError if there are too many for an integer programme."""
    largest = min(rules.largest, n_tasks)
    n_groups = sum(comb(n_tasks, size) for size in range(rules.smallest, largest + 1))
    if n_groups > MOST_COLUMNS:
        totals = [sum(comb(n_tasks, size) for size in range(1, m + 1)) for m in range(1, largest)]
        most = max(1, sum(total <= MOST_COLUMNS for total in totals))
        raise UsageError(
            f"{n_tasks} tasks have {n_groups:,} groups of {rules.smallest} to {largest} tasks, more than can be "
            f"searched exactly: give --max-size {most} or less, or choose fewer tasks with --tasks"
        )
    return [group for size in range(rules.smallest, largest + 1) for group in combinations(range(n_tasks), size)]


def _membership(groups: Sequence[Sequence[int]], n_tasks: int) -> object:
    """(T, groups), 1 where a task is in a group."""
    from scipy.sparse import csr_array

    rows = [task for group in groups for task in group]
    of = [i for i, group in enumerate(groups) for _ in group]
    return csr_array((np.ones(len(rows)), (rows, of)), shape=(n_tasks, len(groups)))


@dataclass(frozen=True, kw_only=True)
class Overlapping:
    """Groups that may overlap. served_by: for each task, the index of the group with its highest score."""

    groups: Partition
    served_by: tuple[int, ...]
    value: float


def best_overlapping(affinity: Floats, k: int, rules: Rules) -> Overlapping:
    """The k or fewer groups with the highest sum over tasks of the value of the task's best group for it.

    With "mean" that is the selection of Fifty et al. Solved as an integer programme with a variable for each group and
    one for each task of each group.
    Raises: UsageError for more groups than can be searched.
    """
    from scipy.optimize import LinearConstraint, milp
    from scipy.sparse import csr_array, hstack, vstack

    n_tasks = len(affinity)
    groups = columns(n_tasks, rules)
    pairs = [(i, task) for i, group in enumerate(groups) for task in group]
    scores = np.array([_score(affinity, groups[i], task, rules.value) for i, task in pairs])
    n_groups, n_pairs = len(groups), len(pairs)
    order = np.arange(n_pairs)
    served = csr_array((np.ones(n_pairs), ([t for _, t in pairs], order)), shape=(n_tasks, n_pairs))
    # y - x <= 0: a task is served by a group only if the group is chosen.
    uses = csr_array((-np.ones(n_pairs), (order, [i for i, _ in pairs])), shape=(n_pairs, n_groups))
    each = csr_array((np.ones(n_pairs), (order, order)), shape=(n_pairs, n_pairs))
    lines = vstack(
        [
            hstack([csr_array((n_tasks, n_groups)), served]),
            hstack([uses, each]),
            hstack([csr_array(np.ones((1, n_groups))), csr_array((1, n_pairs))]),
        ]
    )
    low = np.concatenate([np.ones(n_tasks), np.full(n_pairs, -np.inf), [0.0]])
    high = np.concatenate([np.ones(n_tasks), np.zeros(n_pairs), [float(k)]])
    cost = np.concatenate([np.zeros(n_groups), -scores])
    solved = milp(cost, constraints=LinearConstraint(lines, low, high), integrality=1, bounds=(0, 1))
    if solved.x is None:
        raise UsageError(
            f"{k} groups of at most {rules.largest} tasks do not hold {n_tasks} tasks: give a larger --max-size"
        )
    used = [i for i in range(n_groups) if solved.x[i] > 0.5]
    home = {task: used.index(i) for (i, task), y in zip(pairs, solved.x[n_groups:], strict=True) if y > 0.5}
    serving = sorted(set(home.values()))  # a chosen group that serves no task is left out
    return Overlapping(
        groups=tuple(groups[used[i]] for i in serving),
        served_by=tuple(serving.index(home[task]) for task in range(n_tasks)),
        value=float(-solved.fun),
    )


def _score(affinity: Floats, group: Sequence[int], task: int, value: Value) -> float:
    """The value of a group for one of its tasks."""
    others = [other for other in group if other != task]
    total = float(affinity[others, task].sum())
    return total / max(1, len(others)) if value == "mean" else total


def random_partition(sizes: Sequence[int], rng: np.random.Generator, other_than: Sequence[Partition] = ()) -> Partition:
    """A uniformly random partition of the tasks into clusters of these sizes.

    Args: other_than: partitions that it may not be, in whatever order their clusters are; not all that there are.
    """
    excluded, ends = {frozenset(one) for one in other_than}, np.cumsum(sizes).tolist()
    while True:
        order = rng.permutation(sum(sizes)).tolist()
        found = tuple(tuple(sorted(order[end - size : end])) for size, end in zip(sizes, ends, strict=True))
        if frozenset(found) not in excluded:
            return found


def n_partitions(sizes: Sequence[int]) -> int:
    """The number of partitions into clusters of these sizes, in whatever order."""
    ordered = math.factorial(sum(sizes)) // math.prod(map(math.factorial, sizes))
    return ordered // math.prod(math.factorial(list(sizes).count(size)) for size in set(sizes))


def random_values(affinity: Floats, sizes: Sequence[int], value: Value, n: int, rng: np.random.Generator) -> Floats:
    """The values of n random partitions into clusters of these sizes, (n,)."""
    n_tasks, home = len(affinity), np.repeat(np.arange(len(sizes)), sizes)
    same = (home[:, None] == home) & ~np.eye(n_tasks, dtype=bool)
    weights = same / np.maximum(same.sum(1), 1) if value == "mean" else same.astype(float)
    # The clusters stay where they are, and the tasks are put into them in a random order.
    orders = rng.permuted(np.tile(np.arange(n_tasks), (n, 1)), axis=1)
    values: Floats = (affinity[orders[:, :, None], orders[:, None, :]] * weights).sum((1, 2))
    return values


def labels(partition: Partition, n_tasks: int) -> list[int]:
    """The cluster of each task."""
    home = {task: cluster for cluster, group in enumerate(partition) for task in group}
    return [home[task] for task in range(n_tasks)]


def adjusted_rand(one: Sequence[object], other: Sequence[object]) -> float:
    """The adjusted Rand index of two partitions, given as the cluster of each task: 1 for equal, 0 as by chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(_codes(one), _codes(other)))


def _codes(values: Sequence[object]) -> list[int]:
    known: dict[object, int] = {}
    return [known.setdefault(value, len(known)) for value in values]
