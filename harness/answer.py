"""Every text of a run, cluster by cluster, each through its own adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.clusters import clusters_of
from harness.data import Rows
from harness.evaluate import Answers, make_answers
from harness.interrupt import StopFlag
from harness.prepare import Base, open_adapter
from harness.record import GenerationSummary, Parameters
from harness.resolve import Resolved
from harness.sizes import size_of, total
from harness.store import RunDirectory
from harness.summaries import answered_together


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the texts took (None: no model was asked), and how large the adapters are."""

    generation: GenerationSummary | None
    parameters: Parameters


def answer_all(
    run: RunDirectory,
    resolved: Resolved,
    base: Base | None,
    train: Rows | None,
    directory: RunDirectory,
    stop: StopFlag,
    say: Callable[[str], None],
) -> Answered:
    """Write every text that is missing.

    Args:
        run: whose adapters answer. directory: where the predictions go, the run's own or an evaluation's.
        base: None where no model is loaded here.
    """
    generations, sizes = [], []
    for cluster in clusters_of(resolved.spec):
        prepared = None if base is None else open_adapter(run, resolved, base, cluster)
        # every task of the cluster, also those without rows: a task's place is its route
        answers = Answers(run=directory, examples={t: resolved.rows.of(t) for t in cluster.tasks})
        generations.append(make_answers(resolved, prepared, train, answers, stop))
        for line in answers.warnings:
            say(line)
        if prepared is not None:
            sizes.append(size_of(resolved.method, prepared.adapter, cluster.tasks))
            prepared.adapter.detach()
    return Answered(
        generation=answered_together(generations), parameters=total(sizes, None if base is None else base.loaded)
    )
