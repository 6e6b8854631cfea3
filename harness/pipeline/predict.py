"""All predictions of a run, cluster by cluster, each with its own adapter."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from harness.config.clusters import clusters_of
from harness.data.rows import Rows
from harness.generation.backend import answer_without_model, answered_together, generate_answers
from harness.generation.generator import Generator
from harness.generation.predictions import Answers
from harness.method import Trait
from harness.models.parameter_count import size_of, total
from harness.pipeline.prepare import Base, Prepared, open_adapter
from harness.pipeline.resolve import Resolved
from harness.runtime.signals import StopFlag
from harness.store.files import write_json
from harness.store.record import GenerationSummary, Parameters
from harness.store.run_directory import RunDirectory

LOG: Final = logging.getLogger(__name__)


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
            LOG.warning(line)
        if answers.chosen is not None:
            write_json(directory.of(cluster.name).artefacts / "router_accuracy.json", router_accuracy(answers.chosen))
        if prepared is not None:
            sizes.append(size_of(resolved.method, prepared.adapter, cluster.tasks))
            prepared.adapter.detach()
    return Answered(
        generation=answered_together(generations), parameters=total(sizes, None if base is None else base.loaded)
    )


def router_accuracy(chosen: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """For reports: the share of each task's prompts that an adapter gave to the task itself, knowing no label.

    Args:
        chosen: by task, how many of its prompts were given to which task; none is empty.
    """
    shares = {task: counts.get(task, 0) / sum(counts.values()) for task, counts in chosen.items()}
    tasks = {
        task: {"n": sum(counts.values()), "accuracy": shares[task], "chosen": dict(counts)}
        for task, counts in chosen.items()
    }
    return {"mean": sum(shares.values()) / len(shares) if shares else None, "tasks": tasks}


def make_answers(
    resolved: Resolved, prepared: Prepared | None, train: Rows | None, answers: Answers, stop: StopFlag
) -> GenerationSummary | None:
    """Write every text that is missing: by the method itself, by a back end, or through the adapter.

    Returns: what it cost; None where no model was asked.
    """
    if Trait.ANSWERS in resolved.method.traits:
        answer_without_model(resolved.method, answers, train, stop)
        return None
    if prepared is None:
        from harness.integrations.lm_eval_backend import answer_by_backend

        return answer_by_backend(resolved, train, answers, stop)
    summary = generate_answers(generator(resolved, prepared), prepared.encoder, answers, stop)
    tokens = sum(p.tokens or 0 for t in answers.examples for p in answers.run.predictions(t))
    return summary.model_copy(update={"tokens": tokens})


def generator(resolved: Resolved, prepared: Prepared) -> Generator:
    """The text generator of a prepared run."""
    return Generator(
        prepared.loaded,
        prepared.adapter,
        prepared.tasks,
        folds=Trait.FOLDS in resolved.method.traits,
        batch_tokens=resolved.spec.eval.batch_tokens,
        reads=Trait.LABEL_FREE in resolved.method.traits,
    )
