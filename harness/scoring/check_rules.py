"""A suite's scoring rules tried on its own targets, before anything is trained for them."""

from __future__ import annotations

from typing import Final

from harness.data.splits import SplitExamples
from harness.errors import HarnessError
from harness.scoring import statistics as stats
from harness.scoring.judge import JudgeCache, judge
from harness.task import Suite

_PROBED: Final = 20  # examples of each task


def check_rules(suite: Suite, examples: SplitExamples) -> None:
    """Score the first targets of each task as predictions of themselves, under every protocol.

    Raises: HarnessError for a headline that the statistics lack, statistics of another shape, or units that depend on
        the predictions; whatever the suite's own parsers and statistics raise.
    """
    for name, indices in examples.by_task.items():
        probed = examples.at(indices[:_PROBED])
        cache = JudgeCache()
        for protocol, rule in suite.tasks[name].protocols.items():
            judged = judge(suite.tasks[name], protocol, probed, [e.target for e in probed], cache)
            where = f"suite {suite.name!r}, task {name!r}, protocol {protocol!r}"
            shape = getattr(judged.statistics.per_unit, "shape", None)
            if shape is None or len(shape) != 2 or not min(1, len(probed)) <= shape[0] <= len(probed):
                raise HarnessError(
                    f"{where}: the statistics' per_unit has the shape {shape}, but (n, k) is needed: one row for each "
                    f"of the {len(probed)} examples, or one for each group of them that is not independent"
                )
            unanswered = judge(suite.tasks[name], protocol, probed, [""] * len(probed)).statistics.per_unit
            if len(unanswered) != shape[0]:
                raise HarnessError(
                    f"{where}: the statistics have {shape[0]} units for the references as predictions and "
                    f"{len(unanswered)} for empty predictions. Group the gold answers, not the predicted ones: the "
                    "units of two methods must be the same"
                )
            metrics = stats.metrics(judged.statistics)
            if rule.headline not in metrics:
                raise HarnessError(
                    f"{where}: the headline {rule.headline!r} is not a metric of its statistics, which have "
                    f"{', '.join(metrics) or 'none'}. Correct the headline, or add the metric to Statistics.values"
                )
