"""A finished run that predicts any examples, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.config.clusters import Cluster, clusters_of
from harness.data.encoding import Encoder
from harness.errors import DataError
from harness.generation.backend import Progress
from harness.generation.predictions import PredictionKey, PredictionWriter
from harness.generation.requests import GenerationRequest
from harness.method import Baseline, Trait
from harness.pipeline.predict import generator, open_source, predict_cluster
from harness.pipeline.prepare import Prepared, open_adapter, train_examples
from harness.pipeline.reopen import base_of
from harness.pipeline.resolve import Resolved
from harness.runtime.signals import StopFlag
from harness.store.record import Prediction
from harness.store.run_directory import RunDirectory
from harness.task import Example, UnlabelledExample

_NO_TASK: Final = "the example names no task, and {reason}. Name the task with --task or in the file, one of {tasks}"


@dataclass(frozen=True, kw_only=True)
class PredictedExample:
    """The prediction for one example. task: None if none was named and all tasks of the run have the same weights."""

    task: str | None
    text: str
    truncated: bool | None


@dataclass(frozen=True, kw_only=True)
class _Assigned:
    """An example with the task whose weights and limits are used for it. output_task: the task in the output."""

    example: Example
    output_task: str | None


def why_task_needed(resolved: Resolved) -> str | None:
    """Why examples must name their task, for errors; None if the run can predict without it."""
    spec = resolved.spec
    if len(spec.suite.tasks) == 1:
        return None
    if isinstance(resolved.method, Baseline):
        return f"{spec.method.name} predicts from the training examples of a task"
    if spec.clusters is not None:
        return "the run has one adapter for each cluster of tasks"
    if spec.shots:
        return "the run's prompts have in-context examples of the task"
    if {Trait.ROUTED, Trait.LABEL_FREE} & resolved.method.traits == {Trait.ROUTED}:
        return _own_weights(resolved)
    return None


def no_task(resolved: Resolved, place: str, reason: str) -> DataError:
    """The error for an example whose task is needed and not known."""
    return DataError(f"{place}: {_NO_TASK.format(reason=reason, tasks=', '.join(resolved.spec.suite.tasks))}")


def _own_weights(resolved: Resolved) -> str:
    return f"{resolved.spec.method.name} has weights of its own for each task"


class Predictor:
    """The model of a finished run. The adapter of a cluster stays on the model until another one is needed.

    Attributes:
        n_truncated: prompts that were too long, so that in-context examples or their middle were left out.
    """

    def __init__(self, run: RunDirectory, resolved: Resolved, stop: StopFlag) -> None:
        self.run, self.resolved, self.stop = run, resolved, stop
        train = train_examples(resolved)
        base = None if resolved.model is None else base_of(run, resolved, train)
        self.source = open_source(resolved, base, train)
        self.n_truncated = 0
        self._cluster: Cluster | None = None
        self._prepared: Prepared | None = None

    def predict(
        self, chunk: Sequence[UnlabelledExample], folder: RunDirectory, progress: Progress
    ) -> list[PredictedExample]:
        """The predictions for some examples, in order.

        Args: folder: where predictions are stored as they are made, for a later call with the same examples.
        Raises: DataError for an example whose task is needed and not known.
        """
        assigned = list(self._assign(chunk))
        by_key: dict[PredictionKey, Prediction] = {}
        for cluster in clusters_of(self.resolved.spec):
            examples = _by_task([a.example for a in assigned if a.example.task in cluster.tasks])
            if not examples:
                continue
            writer = PredictionWriter(run=folder, examples=examples)
            generation = predict_cluster(self.source, self._open(cluster), writer, self.stop, progress)
            self.n_truncated += 0 if generation is None else generation.n_truncated or 0
            for task, predictions in folder.predictions(examples).items():
                by_key |= {PredictionKey(task, p.id): p for p in predictions}
        found = [by_key[PredictionKey(a.example.task, a.example.id)] for a in assigned]
        return [
            PredictedExample(task=a.output_task, text=p.text, truncated=p.cut)
            for a, p in zip(assigned, found, strict=True)
        ]

    def _open(self, cluster: Cluster) -> Prepared | None:
        """The model with the adapter of a cluster; None if no model is loaded here."""
        if self.source.base is None:
            return None
        if self._prepared is None or self._cluster != cluster:
            if self._prepared is not None:
                self._prepared.adapter.detach()
            self._prepared = open_adapter(self.run, self.resolved, self.source.base, cluster)
            self._cluster = cluster
        return self._prepared

    def _assign(self, chunk: Sequence[UnlabelledExample]) -> Iterator[_Assigned]:
        """The task of each example, named or chosen, and ids that are unique within the chunk."""
        unnamed = [e for e in chunk if e.task is None]
        chosen = iter(self._choose(unnamed) if unnamed else ())
        used: set[PredictionKey] = set()
        for position, example in enumerate(chunk):
            task, output_task = (example.task, example.task) if example.task is not None else next(chosen)
            id_ = example.id
            while PredictionKey(task, id_) in used:
                id_ = f"{id_} ({position})"
            used.add(PredictionKey(task, id_))
            yield _Assigned(
                example=Example(id=id_, task=task, prompt=example.prompt, target=""), output_task=output_task
            )

    def _choose(self, examples: Sequence[UnlabelledExample]) -> Sequence[tuple[str, str | None]]:
        """For examples without a task: the task that the adapter chooses, or any if all have the same weights."""
        tasks = list(self.resolved.spec.suite.tasks)
        if len(tasks) == 1:
            return [(tasks[0], tasks[0])] * len(examples)
        reason = why_task_needed(self.resolved)
        if reason is not None:
            raise no_task(self.resolved, examples[0].place, reason)
        encoder = self.source.encoder
        assert encoder is not None  # a baseline needs the task
        longest = max(tasks, key=lambda task: encoder.limits[task])
        if Trait.LABEL_FREE not in self.resolved.method.traits:
            return [(longest, None)] * len(examples)
        (cluster,) = clusters_of(self.resolved.spec)
        prepared = self._open(cluster)
        assert prepared is not None  # a method with an adapter has a model of its own
        routes = generator(self.resolved, prepared).route(_requests(encoder, longest, examples))
        if routes is None:
            raise no_task(self.resolved, examples[0].place, _own_weights(self.resolved))
        names = [prepared.routes.name(routes[PredictionKey(longest, str(i))]) for i in range(len(examples))]
        return [(name, name) for name in names]


def _requests(encoder: Encoder, task: str, examples: Sequence[UnlabelledExample]) -> list[GenerationRequest]:
    """The prompts that a router reads, with ids by position and room for the longest predictions."""
    texts = [Example(id=str(i), task=task, prompt=e.prompt, target="") for i, e in enumerate(examples)]
    return [
        GenerationRequest(id=text.id, task=task, prompt=prompt.tokens, limit=encoder.limit(task, prompt.tokens))
        for text, prompt in zip(texts, encoder.prompts(texts), strict=True)
    ]


def _by_task(examples: Sequence[Example]) -> Mapping[str, list[Example]]:
    found: dict[str, list[Example]] = {}
    for example in examples:
        found.setdefault(example.task, []).append(example)
    return found
