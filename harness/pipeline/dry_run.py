"""The configuration and the estimated cost of a run, for ``--dry-run``."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tabulate import tabulate

from harness.config.clusters import clusters_of
from harness.config.spec import directory_name
from harness.data.splits import SplitExamples
from harness.method import adapter_method
from harness.models.parameter_count import describe_adapted, size_of, total
from harness.pipeline.prepare import Base, attach, load_base, mixture, train_examples
from harness.pipeline.resolve import Resolved
from harness.pipeline.round_trip import check_round_trip
from harness.reporting.numbers import MISSING, number, or_missing, size
from harness.store.record import Parameters
from harness.training.memory import estimate_memory

if TYPE_CHECKING:
    from harness.models.loading import LoadedModel
    from harness.runtime.distributed import ProcessGroup


_SAMPLED = 200
"""Training examples of each task that are tokenised; the others are assumed to have the same lengths."""


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """One task's numbers of examples, and the mean lengths of its training examples in tokens (None without any).

    n_truncated: training examples whose prompts are truncated. limit: the maximum length of a prediction in tokens.
    """

    n_train: int
    n_eval: int
    prompt_tokens: float | None
    target_tokens: float | None
    n_truncated: int
    limit: int | None


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Counts and costs.

    adapted: the note on weights that the adapter does not reach, if there are any. memory_bytes: an estimate of the
    peak of training, on each rank.
    """

    directory: str
    tasks: dict[str, TaskPlan]
    steps: int | None
    tokens: int | None
    parameters: Parameters
    adapted: str | None
    memory_bytes: int | None


def dry_run(resolved: Resolved) -> DryRun | None:
    """Load the model, attach the adapter and count. Nothing is trained, and no file is written.

    Under torchrun every process calls this, and only rank 0 has a result.

    Raises: UsageError if the base model is to be sharded and there is one process.
    """
    from harness.runtime.distributed import join, require_ranks

    shards, processes = resolved.spec.train.shard_base, join()
    require_ranks(processes, shards)
    made = _dry_run(resolved, processes) if processes.is_main or shards else None
    return made if processes.is_main else None


def _dry_run(resolved: Resolved, processes: ProcessGroup) -> DryRun:
    train = train_examples(resolved)
    base = None if resolved.model is None else load_base(resolved, train, processes)
    check_round_trip(resolved, base, train)
    tasks = {t: _task(t, resolved, base, train) for t in resolved.evaluated.by_task}
    steps = tokens = needed = None
    if resolved.method.trains and train is not None and base is not None:
        plan = mixture(resolved, train)
        steps = plan.steps
        mean = sum(plan.shares[t] * ((p.prompt_tokens or 0) + (p.target_tokens or 0)) for t, p in tasks.items())
        tokens = round(steps * plan.batch_size * mean)
        needed = _memory(resolved, base, train)
    counted = _count(resolved, None if base is None else base.loaded)
    return DryRun(
        directory=directory_name(resolved.spec),
        tasks=tasks,
        steps=steps,
        tokens=tokens,
        parameters=counted.parameters,
        adapted=counted.note,
        memory_bytes=needed,
    )


def _memory(resolved: Resolved, base: Base, train: SplitExamples) -> int:
    """The largest estimate of any cluster, since clusters are trained one at a time."""
    needed = []
    for cluster in clusters_of(resolved.spec):
        if any(train.counts[t] for t in cluster.tasks):
            prepared = attach(resolved, base, cluster)
            plan = mixture(resolved, train)
            needed.append(
                estimate_memory(base.loaded, prepared.adapter, base.encoder, cluster.tasks, resolved.spec.train, plan)
            )
            prepared.adapter.detach()
    return max(needed)


def to_json(plan: DryRun) -> dict[str, Any]:
    """The plan as JSON values."""
    return {**dataclasses.asdict(plan), "parameters": plan.parameters.model_dump()}


def render(plan: DryRun, resolved: Resolved) -> str:
    """The plan as text."""
    rows = [
        (t, p.n_train, p.n_eval, number(p.prompt_tokens), number(p.target_tokens), p.n_truncated, p.limit or MISSING)
        for t, p in plan.tasks.items()
    ]
    header = ("task", "train", resolved.evaluated.split, "prompt tokens", "target tokens", "truncated", "max new")
    count = plan.parameters
    lines = [
        resolved_spec(resolved),
        "",
        tabulate(rows, header, tablefmt="simple"),
        "",
        f"run         {plan.directory}",
        f"steps       {or_missing(plan.steps)}",
        f"tokens      {MISSING if plan.tokens is None else f'about {number(plan.tokens)}'}",
        f"parameters  stored {number(count.stored)}, active {number(count.active)}"
        + (
            f", {number(count.percent, 2)} % of the base model's {number(count.base)}"
            if count.percent is not None
            else ""
        ),
        *([] if count.adapted_percent is None else [f"adapted     {_adapted(plan)}"]),
        f"memory      {MISSING if plan.memory_bytes is None else f'about {size(plan.memory_bytes)}'}",
        "dry run: nothing was trained",
    ]
    return "\n".join(lines)


def _adapted(plan: DryRun) -> str:
    return plan.adapted or "all linear weights of the model that a text goes through"


def _task(task: str, resolved: Resolved, base: Base | None, train: SplitExamples | None) -> TaskPlan:
    n_train = train.counts[task] if train is not None else 0
    n_eval = resolved.evaluated.counts[task]
    empty: dict[str, Any] = {"prompt_tokens": None, "target_tokens": None, "n_truncated": 0, "limit": None}
    if base is None:
        return TaskPlan(n_train=n_train, n_eval=n_eval, **empty)
    limit = base.encoder.limits[task]
    if train is None or not n_train:
        return TaskPlan(n_train=n_train, n_eval=n_eval, **{**empty, "limit": limit})
    encoded = base.encoder.encode(train.at(train.by_task[task][:_SAMPLED]))
    return TaskPlan(
        n_train=n_train,
        n_eval=n_eval,
        prompt_tokens=float(np.mean([len(r.prompt) for r in encoded])),
        target_tokens=float(np.mean([len(r.target) for r in encoded])),
        n_truncated=round(sum(r.truncated for r in encoded) * n_train / len(encoded)),
        limit=limit,
    )


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """Parameters, and the note on weights that are not adapted."""

    parameters: Parameters
    note: str | None = None


def _count(resolved: Resolved, loaded: LoadedModel | None) -> _Counted:
    """The parameters of a run that has not started: each cluster's adapter is attached, counted and detached."""
    if loaded is None:
        return _Counted(parameters=total([], None))
    sizes, notes = [], list[str | None]()
    for cluster in clusters_of(resolved.spec):
        adapter = adapter_method(resolved.method).attach(loaded.model, cluster.tasks, seed=resolved.spec.seed)
        sizes.append(size_of(resolved.method, adapter, cluster.tasks, loaded.model))
        notes.append(describe_adapted(loaded.model))
        adapter.detach()
    return _Counted(parameters=total(sizes, loaded), note=next(filter(None, notes), None))


def parameters(resolved: Resolved, loaded: LoadedModel | None) -> Parameters:
    """The parameters of a run that has not started."""
    return _count(resolved, loaded).parameters


def resolved_spec(resolved: Resolved) -> str:
    """The resolved spec as JSON, for --dry-run."""
    return json.dumps(resolved.spec.model_dump(mode="json"), ensure_ascii=False, indent=1)
