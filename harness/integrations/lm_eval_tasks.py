"""Both ways between lm-eval and us: our tasks as its tasks, and our adapted models as its models.

Only this file and ``lm_eval_backend`` import lm_eval, and only the commands that need it import them.
"""

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
from typing import Any, cast

import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from tabulate import tabulate

from harness.errors import UsageError, unknown
from harness.generation.generator import Generator
from harness.integrations.lm_eval_model import AdaptedLM
from harness.method import Adapter, Trait
from harness.pipeline.predict import generator
from harness.pipeline.prepare import Prepared
from harness.pipeline.reopen import open_model
from harness.pipeline.resolve import Resolved
from harness.reporting.numbers import MISSING, number
from harness.store.files import write_json

_BOOTSTRAP = 1000  # resamples behind lm-eval's standard errors


class _Base:
    """The adapter as if it were not there: whatever the route, the layers are off."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def route(self, labels: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        return self.adapter.off()


def evaluate_tasks(
    path: Path,
    names: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    route: str | None = None,
    data: str | None = None,
    model: str | None = None,
) -> Report:
    """Score a finished run's model and its base on lm-eval's tasks; written to RUN/lm_eval/<names>-<hash>.json.

    Args:
        names: of tasks, groups or tags of lm-eval, or of ``include_path``'s files.
        route: the run's task whose share of the adapter is used.
        data, model: where the run's data and model are now, when they have moved.

    Raises: UsageError for an unknown task, or a route that is missing, unknown or of no use; errors of
        ``harness.reopen``.
    """
    manager = _manager(names, include_path)
    finished, prepared = open_model(path, data, model, route)
    texts = generator(finished.resolved, prepared)
    place = _route(finished.resolved, prepared, route)
    size = finished.resolved.spec.eval.batch_tokens
    off = cast("Adapter", _Base(prepared.adapter))
    base = Generator(prepared.loaded, off, prepared.tasks, folds=False, batch_tokens=size)
    adapted_results = _simple(AdaptedLM(prepared, texts, place), names, manager, limit)
    base_results = _simple(AdaptedLM(prepared, base, place), names, manager, limit)
    key = json.dumps([list(names), limit, route, str(include_path)])
    file = f"{'+'.join(names)[:80].replace('/', '_')}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.json"
    report = Report(
        run_id=finished.record.run_id,
        directory=str(finished.run.path),
        lm_eval=version("lm_eval"),
        limit=limit,
        route=route,
        versions=plain(adapted_results["versions"]),
        n_shot=plain(adapted_results["n-shot"]),
        n_samples=plain(adapted_results["n-samples"]),
        adapted=plain(adapted_results["results"]),
        base=plain(base_results["results"]),
    )
    write_json(finished.run.path / "lm_eval" / file, report.to_json())
    return report


def _manager(names: Sequence[str], include_path: Path | None) -> TaskManager:
    """Reading lm-eval's own tasks takes many seconds: they are left out where every name is the user's own."""
    if include_path is not None:
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for name in names:
        if name not in manager.all_tasks:
            raise unknown("task of lm-eval", name, manager.all_tasks, see="lm-eval ls tasks")
    return manager


def _route(resolved: Resolved, prepared: Prepared, given: str | None) -> int:
    """The index of the task whose share is used; 0 where it does not matter."""
    traits, name = resolved.method.traits, resolved.spec.method.name
    if given is not None and given not in prepared.tasks:
        raise unknown("task", given, prepared.tasks, see=f"harness list {resolved.spec.suite.name}")
    chooses = Trait.LABEL_FREE in traits and _chooses(prepared)
    if given is not None and chooses:
        raise UsageError(f"{name} chooses its route from the prompt: leave --route out")
    if given is None and Trait.ROUTED in traits and not chooses:
        raise UsageError(
            f"{name} has a share for each task: say with --route which one answers. Tasks: {', '.join(prepared.tasks)}"
        )
    return 0 if given is None else list(prepared.tasks).index(given)


def _chooses(prepared: Prepared) -> bool:
    probe = torch.tensor([int(prepared.loaded.tokenizer.eos_token_id)], device=prepared.loaded.device)
    return prepared.adapter.assign([probe]) is not None


def _simple(model: AdaptedLM, names: Sequence[str], manager: TaskManager, limit: int | None) -> dict[str, Any]:
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
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(sys.stderr):  # lm-eval prints here and there
        yield


@dataclass(frozen=True, kw_only=True)
class Report:
    """Results of lm-eval's tasks on a run's model and on its base, as lm-eval gives them: {task: {metric: value}}.

    route: the task whose share was used; None where the method chooses from the prompt, or has one share for all.
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


def render(report: Report) -> str:
    """A row for each metric: base, adapted, and what the adapter changed."""
    rows = []
    for task, metrics in report.adapted.items():
        for name, value in metrics.items():
            # metrics are named "<metric>,<filter>"; the rest is about the task
            if "," in name and "_stderr" not in name and isinstance(value, int | float):
                before = report.base[task].get(name)
                error = metrics.get(name.replace(",", "_stderr,", 1))
                change = number(value - before, 4, signed=True) if isinstance(before, int | float) else MISSING
                rows.append((task, name.removesuffix(",none"), _figure(before), _figure(value), change, _figure(error)))
    header = ("task", "metric", "base", "adapted", "change", "standard error")
    table = tabulate(rows, header, tablefmt="simple", disable_numparse=True)
    of = f"the adapter's share of {report.route}" if report.route else "the adapter"
    return f"{table}\n\nwith {of}; written to {report.directory}/lm_eval"


def plain(value: Any) -> Any:
    """JSON values: numpy's numbers as Python's, nan and "N/A" as None."""
    if isinstance(value, Mapping):
        return {str(k).strip(): plain(v) for k, v in value.items()}
    if hasattr(value, "item"):
        value = value.item()
    if value == "N/A" or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _figure(value: Any) -> str:
    return number(value, 4) if isinstance(value, int | float) else MISSING
