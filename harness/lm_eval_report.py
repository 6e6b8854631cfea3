"""What lm-eval's tasks say of a run's model and of its base, as a file and as a table. Imports no lm_eval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate


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
                change = f"{value - before:+.4f}" if isinstance(before, int | float) else "–"
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
    return f"{value:.4f}" if isinstance(value, int | float) else "–"
