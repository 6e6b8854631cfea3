"""An affinity matrix for people: a page with its clusters and their null, files of clusters, and the picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

from harness.config.clusters import RANDOM, to_toml
from harness.config.spec import ClusterSpec
from harness.leaderboard.plots.style import Style, escape_dollars, figure, legible_colour, light_and_dark
from harness.pipeline.computed_clusters import name_groups
from harness.reporting.markdown import cells, escape, heading, short_names, side_by_side
from harness.reporting.numbers import MISSING, counted
from harness.scoring.affinity_clusters import N_RANDOM, rank_correlation, to_array
from harness.scoring.partitions import adjusted_rand
from harness.store.affinity import Affinity, Clustering, Way

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT: Final[dict[Way, str]] = {
    "updates": "the cosine of the two tasks' updates of the weights, all layers together",
    "gradients": "the decrease of the recipient's loss, as a share of it, for a step of size 1 on the source, to first "
    "order (TAG)",
    "lookahead": "the decrease of the recipient's loss, as a share of it, divided by the size of a step on the source "
    "(TAG with lookahead)",
    "transfer": "the recipient's score with the weights of the source, minus that of the base model",
}
N_DRAWS: Final = 5  # Random partitions that a leaderboard compares with.
_LEAST: Final = 95.0  # A partition is a finding if it is above this percentage of random ones on other runs.
_MOST_NUMBERS: Final = 24  # A matrix with at most this many tasks has its values printed.


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two ways agree. rank: Spearman's correlation of affinities. rand: the adjusted Rand index for each k."""

    ways: tuple[Way, Way]
    rank: float | None
    rand: dict[int, float]


def agreements(found: Sequence[Affinity]) -> list[Agreement]:
    """The agreement of every two matrices of the same tasks."""
    return [
        Agreement(
            ways=(one.way, other.way),
            rank=rank_correlation(to_array(one.mean), to_array(other.mean)),
            rand={
                mine.k: adjusted_rand(_labels(mine, one.tasks), _labels(theirs, one.tasks))
                for mine in one.clusters
                if (theirs := other.clustering(mine.k)) is not None
            },
        )
        for one, other in combinations(found, 2)
        if one.tasks == other.tasks
    ]


def verdict(affinity: Affinity, clustering: Clustering) -> str:
    """Whether a partition is a finding: it is so on runs that took no part in its choice."""
    if clustering.null.held_out is None:
        return "not tested: one run"
    return "yes" if clustering.null.held_out > _LEAST else "no"


def render_affinity(affinity: Affinity) -> str:
    """The page of one matrix, in Markdown."""
    return "\n".join(
        [
            f"# Affinity of tasks by {affinity.way}",
            "",
            f"{escape(affinity.method)} on {escape(affinity.suite.name)} ({escape(affinity.data.label)}), base model "
            f"{escape(affinity.model.label)}, {counted(len(affinity.runs), 'run')}: "
            + ", ".join(f"seed {run.seed}" for run in affinity.runs)
            + f". Examples: {affinity.split}.",
            "",
            f"A value is {ABOUT[affinity.way]}."
            + (" Line: the source, on which is trained; column: the recipient." if affinity.directed else "")
            + (" ±: standard deviation over runs." if affinity.sd is not None else ""),
            "",
            *_matrix(affinity),
            *_clusters(affinity),
            *_overlapping(affinity),
            "",
        ]
    )


def render_agreements(found: Sequence[Agreement]) -> str:
    """How far the ways agree, in Markdown; empty for a single way."""
    if not found:
        return ""
    ks = sorted({k for one in found for k in one.rand})
    head = ["ways", "rank correlation", *(f"K = {k}" for k in ks)]
    lines = [
        cells([" and ".join(one.ways), _number(one.rank), *(_number(one.rand.get(k)) for k in ks)]) for one in found
    ]
    about = "Spearman's correlation of the affinities, and the adjusted Rand index of the clusters for each K."
    return "\n".join(["# Agreement of ways", "", about, "", *heading(head, left=["ways"]), *lines, ""])


def cluster_files(affinity: Affinity) -> dict[str, bytes]:
    """For each K, the clusters as the file that ``--clusters FILE`` reads."""
    files = {}
    for found in affinity.clusters:
        spec = ClusterSpec(label=affinity.way, groups=name_groups(found.groups))
        files[f"clusters-{found.k}.toml"] = to_toml(spec).encode()
    return files


def affinity_pictures(affinity: Affinity) -> dict[str, bytes]:
    """The light and the dark picture by file name."""
    title = f"{affinity.suite.name}, {affinity.model.label}, {affinity.method}: affinity by {affinity.way}"
    return light_and_dark("affinity", partial(_draw, affinity), escape_dollars(title))


def _matrix(affinity: Affinity) -> Iterator[str]:
    """The mean and the spread of each pair, in as many tables as fit; a task's affinity for itself is left out."""
    names = short_names(affinity.tasks)
    place = {task: i for i, task in enumerate(affinity.tasks)}
    for columns in side_by_side(affinity.tasks):
        yield from heading(["source", *map(escape, columns.values())], left=["source"])
        for i, name in enumerate(names):
            yield cells([escape(name), *(_cell(affinity, i, place[task]) for task in columns)])
        yield ""


def _cell(affinity: Affinity, source: int, recipient: int) -> str:
    if source == recipient:
        return MISSING
    spread = None if affinity.sd is None else affinity.sd[source][recipient]
    text = _number(affinity.mean[source][recipient])
    return text if spread is None else f"{text} ± {_number(spread)}"


def _clusters(affinity: Affinity) -> Iterator[str]:
    yield "## Clusters"
    yield ""
    yield from heading(
        ["K", "clusters", "value", "random", "percentile", "on other runs", "same over runs", "with kinds", "finding"],
        left=["clusters", "finding"],
    )
    names = dict(zip(affinity.tasks, short_names(affinity.tasks), strict=True))
    for found in affinity.clusters:
        groups = " · ".join(escape(", ".join(names[task] for task in group)) for group in found.groups)
        null = found.null
        numbers = [_number(v) for v in (null.value, null.random_mean)]
        numbers += [_percent(null.percentile), _percent(null.held_out), _number(found.stability), _number(found.kind)]
        yield cells([str(found.k), groups, *numbers, verdict(affinity, found)])
    yield ""
    yield from _notes(affinity)


def _notes(affinity: Affinity) -> Iterator[str]:
    worth = "summed over its other tasks" if affinity.value == "sum" else "averaged over its other tasks"
    yield (
        f"- value: of a cluster, each task's affinity from the cluster, {worth}; 0 for a task alone. The clusters of "
        "a K are the best of all partitions into K clusters"
    )
    yield (
        f"- random, percentile: the mean of {N_RANDOM:,} random partitions of the same sizes, and the share of them "
        "that is below the value. It is high by construction, since the partition is the best one on this matrix"
    )
    yield (
        "- on other runs: the same percentile for clusters that are chosen without a run and valued on it, averaged "
        f"over runs. A partition is a finding above {_LEAST:.0f} %; with one run this is not tested"
    )
    yield (
        "- same over runs: the adjusted Rand index of the clusters of single runs; with kinds: that with the tasks' "
        "kinds"
    )
    yield (
        "- K is not chosen here. Compare several on dev, next to random partitions of the same sizes, in a leaderboard:"
    )
    for found in affinity.clusters:
        sizes = "+".join(map(str, sorted(map(len, found.groups), reverse=True)))
        yield f"  K = {found.k}: `{RANDOM}{sizes}:0` to `{RANDOM}{sizes}:{N_DRAWS - 1}`"


def _overlapping(affinity: Affinity) -> Iterator[str]:
    if not affinity.overlapping:
        return
    yield ""
    yield "## Groups that may overlap"
    yield ""
    yield from heading(["at most", "groups", "value"], left=["groups"])
    for found in affinity.overlapping:
        groups = []
        for i, group in enumerate(found.groups):
            groups.append(", ".join(f"**{escape(t)}**" if found.served_by[t] == i else escape(t) for t in group))
        yield cells([str(found.k), " · ".join(groups), _number(found.value)])
    yield ""
    yield (
        "**bold**: the tasks that the group serves. The clusters of a run do not overlap, so these are not for "
        "`--clusters`."
    )


def _draw(affinity: Affinity, style: Style) -> Figure | None:
    """The mean matrix without its diagonal."""
    n_tasks = len(affinity.tasks)
    values = [
        [math.nan if i == j or v is None else v for j, v in enumerate(line)] for i, line in enumerate(affinity.mean)
    ]
    limit = max((abs(v) for line in values for v in line if not math.isnan(v)), default=0.0) or 1.0
    names = [escape_dollars(name) for name in short_names(affinity.tasks)]
    picture, axes = figure(max(5.0, 2.4 + 0.5 * n_tasks), 2.0 + 0.36 * n_tasks)
    image = axes.imshow(values, cmap=style.around, vmin=-limit, vmax=limit, aspect="auto")
    if n_tasks <= _MOST_NUMBERS:
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if not math.isnan(value):
                    look: dict[str, Any] = {"fontsize": 7, "color": legible_colour(image, value)}
                    axes.text(x, y, _number(value), ha="center", va="center", **look)
    axes.set_xticks(range(n_tasks), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(n_tasks), names, fontsize=8)
    axes.set_xlabel("recipient" if affinity.directed else "task", fontsize=9)
    axes.set_ylabel("source" if affinity.directed else "task", fontsize=9)
    picture.colorbar(image, ax=axes, pad=0.01).set_label(f"affinity by {affinity.way}", fontsize=8)
    return picture


def _labels(clustering: Clustering, tasks: Sequence[str]) -> list[int]:
    home = {task: i for i, group in enumerate(clustering.groups) for task in group}
    return [home[task] for task in tasks]


def _number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f} %"
