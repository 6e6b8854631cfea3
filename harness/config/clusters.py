"""Clusters: tasks that share one adapter on the one base model (the papers' "1+N")."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.spec import ClusterSpec, RunSpec
from harness.config.toml_file import read_toml
from harness.errors import UsageError, unknown
from harness.registry import list_command
from harness.task import Suite

NONE, KIND = "none", "kind"
AFFINITY, RANDOM = "affinity:", "random:"


_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Tasks that share one adapter. name: names its folders; "" for the one cluster of a run without clustering."""

    name: str
    tasks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AffinityChoice:
    """``affinity:K[:SOURCE]``: the best k clusters of an affinity matrix.

    source: how it was measured, or its affinity.json; None for the default.
    """

    k: int
    source: str | None


@dataclass(frozen=True, kw_only=True)
class RandomChoice:
    """``random:K:DRAW`` or ``random:3+2+2:DRAW``: a random partition into k clusters, or into clusters of these sizes.

    sizes: empty for k clusters of sizes that differ by one at most.
    """

    k: int
    sizes: tuple[int, ...]
    draw: int


def parse_measured(choice: object) -> AffinityChoice | RandomChoice | None:
    """The choices of clusters that have to be computed; None for any other one. Raises: UsageError."""
    if not isinstance(choice, str) or not choice.startswith((AFFINITY, RANDOM)):
        return None
    word, number, *rest = choice.split(":", 2)
    if word == AFFINITY.removesuffix(":"):
        if not number.isdigit() or int(number) < 2:
            raise UsageError(f"--clusters {choice}: give affinity:K with a number of clusters of 2 or more")
        return AffinityChoice(k=int(number), source=rest[0] if rest and rest[0] else None)
    sizes = number.split("+")
    if not rest or not rest[0].isdigit() or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise UsageError(
            f"--clusters {choice}: give random:K:DRAW with a number of clusters, or random:3+2+2:DRAW with their "
            "sizes; DRAW is a number from 0"
        )
    if len(sizes) == 1:
        return RandomChoice(k=int(number), sizes=(), draw=int(rest[0]))
    return RandomChoice(k=len(sizes), sizes=tuple(map(int, sizes)), draw=int(rest[0]))


def label_of(choice: str) -> str:
    """The label of a choice of clusters in tables: without the folder of a file."""
    measured = parse_measured(choice)
    if isinstance(measured, AffinityChoice) and measured.source is not None:
        file = Path(measured.source)
        return f"{AFFINITY}{measured.k}:{file.parent.name if file.suffix else file.name}"
    return choice if choice == KIND or measured is not None else Path(choice).stem


def absolute_clusters(choice: str | None, folder: Path) -> str | None:
    """The choice with the file that it names as an absolute path, if the file is in the folder; others as they are."""
    measured = parse_measured(choice)
    if isinstance(measured, AffinityChoice) and measured.source is not None and (folder / measured.source).exists():
        return f"{AFFINITY}{measured.k}:{(folder / measured.source).resolve()}"
    if choice is not None and measured is None and (folder / choice).is_file():
        return str((folder / choice).resolve())
    return choice


def to_toml(clusters: ClusterSpec) -> str:
    """The clusters as the file that ``--clusters FILE`` reads."""
    return "".join(
        f"{name} = {json.dumps(list(tasks), ensure_ascii=False)}\n" for name, tasks in clusters.groups.items()
    )


def clusters_of(spec: RunSpec) -> list[Cluster]:
    """The clusters of a run, at least one; each task is in exactly one."""
    if spec.clusters is None:
        return [Cluster(name="", tasks=tuple(spec.suite.tasks))]
    return [Cluster(name=name, tasks=tasks) for name, tasks in spec.clusters.groups.items()]


def cluster_with(spec: RunSpec, task: str) -> Cluster:
    """The cluster whose adapter a task uses."""
    return next(c for c in clusters_of(spec) if task in c.tasks)


def read_clusters(choice: str | Mapping[str, Any] | None) -> str | ClusterSpec | None:
    """The value of ``--clusters``: None, "kind", or the content of a file. Raises: UsageError."""
    if choice is None or choice == NONE:
        return None
    if isinstance(choice, Mapping):
        return ClusterSpec(**choice)
    if choice == KIND:
        return KIND
    path = Path(choice)
    content = read_toml(path, option="--clusters", hint="Give none, kind, affinity:K, random:K:DRAW or a TOML file")
    for name, tasks in content.items():
        if not _NAME.fullmatch(name):
            raise UsageError(f"--clusters {path}: invalid cluster name {name!r}: use only letters, digits, '_' and '-'")
        if not isinstance(tasks, list) or not all(isinstance(t, str) for t in tasks):
            raise UsageError(
                f"--clusters {path}: {name} = {tasks!r} is not a list of tasks such as {name} = ['a', 'b']"
            )
    return ClusterSpec(label=path.stem, groups={n: tuple(t) for n, t in content.items()})


def group_tasks(choice: str | Mapping[str, Any] | None, suite: Suite, tasks: Sequence[str]) -> ClusterSpec | None:
    """The run's tasks by cluster, in the suite's order; None if all tasks share one adapter.

    A file may name tasks of the suite that are not part of the run.
    Raises: UsageError for a task that is unknown, in two clusters, or in none.
    """
    found = read_clusters(choice)
    if found is None:
        return None
    if isinstance(found, str):
        groups: dict[str, list[str]] = {}
        for task in tasks:
            groups.setdefault(re.sub(r"[^A-Za-z0-9_-]", "_", suite.tasks[task].kind), []).append(task)
        return ClusterSpec(label=KIND, groups={name: tuple(of) for name, of in groups.items()})
    home: dict[str, str] = {}
    for name, of in found.groups.items():
        for task in of:
            if task not in suite.tasks:
                raise unknown(f"task of cluster {name}", task, suite.tasks, see=list_command(suite.name))
            if task in home:
                raise UsageError(f"--clusters {found.label}: {task} is in {home[task]} and in {name}; choose one")
            home[task] = name
    without = [t for t in tasks if t not in home]
    if without:
        raise UsageError(
            f"--clusters {found.label}: not in any cluster: {', '.join(without)}. Add them to a cluster, or choose "
            "tasks with --tasks"
        )
    names = dict.fromkeys(home[t] for t in tasks)
    return ClusterSpec(label=found.label, groups={n: tuple(t for t in tasks if home[t] == n) for n in names})


def describe_clusters(spec: RunSpec) -> str | None:
    """``1+4 kind``: one base model, four adapters; None without clustering."""
    return None if spec.clusters is None else f"1+{len(spec.clusters.groups)} {spec.clusters.label}"
