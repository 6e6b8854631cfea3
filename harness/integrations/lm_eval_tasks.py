"""`harness lm-eval`: a finished run's model and its base model, scored on lm-eval's tasks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from tabulate import tabulate

from harness.errors import DataError, UsageError, unknown
from harness.generation.generator import Generator
from harness.integrations.lm_eval_model import AdaptedLM
from harness.method import BaseRouting, Trait
from harness.pipeline.predict import generator
from harness.pipeline.prepare import Prepared
from harness.pipeline.reopen import open_model
from harness.pipeline.resolve import Resolved
from harness.registry import list_command
from harness.reporting.numbers import MISSING, number
from harness.store.files import write_json

_BOOTSTRAP = 1000
"""Resamples for lm-eval's standard errors."""


def evaluate_tasks(
    path: Path,
    names: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    route: str | None = None,
    data: str | None = None,
    model: str | None = None,
) -> LmEvalReport:
    """Score a finished run's model and its base model; written to RUN/lm_eval/<names>-<hash>.json.

    Args:
        names: tasks, groups or tags of lm-eval, or names in the files of ``include_path``.
        route: the run's task whose share of the adapter is used.
        data, model: the current locations of the run's data and model, if they have moved.

    Raises: UsageError for an unknown task, or a route that is missing, unknown or not applicable; errors of
        ``harness.pipeline.reopen``.
    """
    manager = _manager(names, include_path)
    opened = open_model(path, data, model, route)
    finished, prepared = opened.finished, opened.prepared
    adapted = generator(finished.resolved, prepared)
    task = _task(finished.resolved, prepared, route)
    batch_tokens = finished.resolved.spec.eval.batch_tokens
    no_adapter = BaseRouting(prepared.adapter.off)
    base = Generator(prepared.loaded, no_adapter, prepared.routes, folds=False, batch_tokens=batch_tokens)
    adapted_results = _simple(AdaptedLM(prepared, adapted, task), names, manager, limit)
    base_results = _simple(AdaptedLM(prepared, base, task), names, manager, limit)
    key = json.dumps([list(names), limit, route, str(include_path)])
    file = f"{'+'.join(names)[:80].replace('/', '_')}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.json"
    report = LmEvalReport(
        run_id=finished.record.run_id,
        directory=str(finished.run.path),
        lm_eval=version("lm_eval"),
        limit=limit,
        route=route,
        versions=to_json_value(adapted_results["versions"]),
        n_shot=to_json_value(adapted_results["n-shot"]),
        n_samples=to_json_value(adapted_results["n-samples"]),
        adapted=to_json_value(adapted_results["results"]),
        base=to_json_value(base_results["results"]),
    )
    write_json(finished.run.path / "lm_eval" / file, report.to_json())
    return report


def _manager(names: Sequence[str], include_path: Path | None) -> TaskManager:
    """lm-eval's index of tasks. Its own tasks take many seconds to read: they are left out if no name needs them."""
    if include_path is not None:
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for name in names:
        if name not in manager.all_tasks:
            raise unknown("task of lm-eval", name, manager.all_tasks, see="lm-eval ls tasks")
    return manager


def _task(resolved: Resolved, prepared: Prepared, given: str | None) -> str:
    """The task whose share is used; the first one where all share one adapter or the method chooses."""
    traits, name = resolved.method.traits, resolved.spec.method.name
    if given is not None and given not in prepared.tasks:
        raise unknown("task", given, prepared.tasks, see=list_command(resolved.spec.suite.name))
    chooses = Trait.LABEL_FREE in traits and _chooses(prepared)
    if given is not None and chooses:
        raise UsageError(f"--route does not apply to {name}: it chooses the route from the prompt. Leave --route out")
    if given is None and Trait.ROUTED in traits and not chooses:
        raise UsageError(
            f"{name} has a share for each task: choose one with --route. Tasks: {', '.join(prepared.tasks)}"
        )
    return prepared.tasks[0] if given is None else given


def _chooses(prepared: Prepared) -> bool:
    """Whether the adapter chooses routes from prompts."""
    probe = torch.tensor([int(prepared.loaded.tokenizer.eos_token_id)], device=prepared.loaded.device)
    return prepared.adapter.assign([probe]) is not None


def _simple(model: AdaptedLM, names: Sequence[str], manager: TaskManager, limit: int | None) -> dict[str, Any]:
    try:
        with _quiet():
            found: dict[str, Any] = simple_evaluate(
                model=model,
                tasks=list(names),
                task_manager=manager,
                limit=limit,
                log_samples=False,
                bootstrap_iters=_BOOTSTRAP,
                apply_chat_template=model.style == "chat",
            )
    # FileNotFoundError: how datasets report a data set that is neither in the cache nor on the hub.
    except (ConnectionError, FileNotFoundError) as error:
        text = " ".join(str(error).split())[:300]
        raise DataError(
            f"the data of lm-eval's {', '.join(names)} are not on this disk, and the hub cannot be reached or does not "
            f"have them ({text}). Run the same command once with a connection and without HF_HUB_OFFLINE, which stores "
            "them in the cache; for tasks of your own, correct the path in their files"
        ) from error
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(sys.stderr):  # lm-eval prints to stdout in some places
        yield


@dataclass(frozen=True, kw_only=True)
class LmEvalReport:
    """Results of lm-eval's tasks on a run's model and its base model, as lm-eval has them: {task: {metric: value}}.

    route: the task whose share was used; None if the method chooses from the prompt, or has one share for all.
    """

    run_id: str
    directory: str
    lm_eval: str
    limit: int | None
    route: str | None
    versions: Mapping[str, Any]
    n_shot: Mapping[str, Any]
    n_samples: Mapping[str, Any]
    adapted: Mapping[str, Mapping[str, Any]]
    base: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; missing figures are null."""
        return {**asdict(self)}


def render(report: LmEvalReport) -> str:
    """A table with one line for each metric: the base model, the adapted one, and the difference."""
    rows = []
    for task, metrics in report.adapted.items():
        for name, value in metrics.items():
            # Metrics are named "<metric>,<filter>"; other entries describe the task.
            if "," in name and "_stderr" not in name and isinstance(value, int | float):
                before = report.base[task].get(name)
                error = metrics.get(name.replace(",", "_stderr,", 1))
                change = number(value - before, 4, signed=True) if isinstance(before, int | float) else MISSING
                rows.append((task, name.removesuffix(",none"), _figure(before), _figure(value), change, _figure(error)))
    header = ("task", "metric", "base", "adapted", "change", "standard error")
    table = tabulate(rows, header, tablefmt="simple", disable_numparse=True)
    of = f"the adapter's share of {report.route}" if report.route else "the adapter"
    return f"{table}\n\nwith {of}; written to {report.directory}/lm_eval"


def to_json_value(value: Any) -> Any:
    """JSON values: numpy numbers become Python numbers, NaN and "N/A" become None."""
    if isinstance(value, Mapping):
        return {str(k).strip(): to_json_value(v) for k, v in value.items()}
    if hasattr(value, "item"):
        value = value.item()
    if value == "N/A" or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _figure(value: Any) -> str:
    return number(value, 4) if isinstance(value, int | float) else MISSING
