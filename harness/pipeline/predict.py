"""All predictions of a run, cluster by cluster, each with its own adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.config.backend import parse_backend
from harness.config.clusters import clusters_of
from harness.data.chat import check_style
from harness.data.encoding import Encoder, generation_limits
from harness.data.splits import SplitExamples
from harness.generation.answers import Answering
from harness.generation.backend import (
    Generation,
    Progress,
    predict_with_backend,
    predict_with_model,
    predict_without_model,
    total_generation,
)
from harness.generation.backend_prompts import check_backend_style, max_length_of, tokenizer_of
from harness.generation.generator import Generator
from harness.generation.predictions import PredictionWriter
from harness.inference import InferenceBackend
from harness.method import Baseline, Trait
from harness.models.parameter_count import size_of, total
from harness.pipeline.prepare import Base, Prepared, draw_shots, open_adapter
from harness.pipeline.resolve import Resolved
from harness.registry import backend_class
from harness.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from harness.runtime.signals import StopFlag
from harness.store.files import write_json
from harness.store.record import GenerationSummary, Parameters
from harness.store.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The cost of generation (None if no model generated), and the sizes of the adapters."""

    generation: GenerationSummary | None
    parameters: Parameters


def predict_all(
    run: RunDirectory,
    resolved: Resolved,
    base: Base | None,
    train: SplitExamples | None,
    stop: StopFlag,
    directory: RunDirectory | None = None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Predicted:
    """Write every prediction that is missing.

    Args:
        run: the run with the adapters.
        base: None if no model is loaded here.
        directory: of an evaluation, where its predictions go; default the run itself.
        processes: those that share the work, each of which calls this.
    """
    directory = run if directory is None else directory
    if base is not None:
        _measure_from_here()
    source = open_source(resolved, base, train, processes)
    generations, sizes = [], []
    chosen: dict[str, Mapping[str, int]] = {}
    for cluster in clusters_of(resolved.spec):
        prepared = None if base is None else open_adapter(run, resolved, base, cluster)
        writer = PredictionWriter(run=directory, examples={t: resolved.evaluated.of(t) for t in cluster.tasks})
        generation = predict_cluster(source, prepared, writer, stop)
        generations.append(None if generation is None else generation.summary)
        if generation is not None and generation.chosen is not None:
            accuracy = router_accuracy(generation.chosen)
            chosen |= generation.chosen
            if processes.is_main:
                write_json(directory.of(cluster.name).artefacts / "router_accuracy.json", accuracy)
        if prepared is not None:
            sizes.append(size_of(resolved.method, prepared.adapter, cluster.tasks, prepared.loaded.model))
            prepared.adapter.detach()
    cost = total_generation(generations)
    if cost is not None and chosen:
        cost = cost.model_copy(update={"router_accuracy": router_accuracy(chosen)["mean"]})
    if cost is not None and base is not None:
        cost = cost.model_copy(update={"peak_memory_bytes": _peak_bytes(base)})
    return Predicted(generation=cost, parameters=total(sizes, None if base is None else base.loaded))


def _measure_from_here() -> None:
    """Start a new measurement of the peak of memory. The import loads torch, which baselines do without."""
    from harness.runtime.memory import reset_peak

    reset_peak()


def _peak_bytes(base: Base) -> int | None:
    from harness.runtime.memory import peak_bytes

    return peak_bytes(base.loaded.device, base.memory_before)


def router_accuracy(chosen: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """For reports: the share of each task's prompts that an adapter routed to the task itself, without labels.

    Args:
        chosen: by task, how many of its prompts were routed to which task; none is empty.
    """
    shares = {task: counts.get(task, 0) / sum(counts.values()) for task, counts in chosen.items()}
    tasks = {
        task: {"n": sum(counts.values()), "accuracy": shares[task], "chosen": dict(counts)}
        for task, counts in chosen.items()
    }
    return {"mean": sum(shares.values()) / len(shares) if shares else None, "tasks": tasks}


@dataclass(frozen=True, kw_only=True)
class Source:
    """What predicts for a run, besides the adapter of a cluster: opened once, however many clusters there are.

    train: the training examples, for baselines and in-context examples. base: None if no model is loaded here.
    backend, backend_encoder: of a run whose model is served elsewhere; None otherwise.
    processes: those that share the work.
    """

    resolved: Resolved
    train: SplitExamples | None
    base: Base | None
    backend: InferenceBackend | None = None
    backend_encoder: Encoder | None = None
    processes: ProcessGroup = SINGLE_PROCESS

    @property
    def encoder(self) -> Encoder | None:
        """The encoder of prompts; None for a baseline."""
        return self.backend_encoder if self.base is None else self.base.encoder


def open_source(
    resolved: Resolved, base: Base | None, train: SplitExamples | None, processes: ProcessGroup = SINGLE_PROCESS
) -> Source:
    """Open the back end of a run that has one. Raises: UsageError for a value of --prompt that it does not support."""
    given = parse_backend(resolved.spec.backend)
    if given is None:
        return Source(resolved=resolved, train=train, base=base, processes=processes)
    backend = backend_class(given.name)(given.arguments)
    encoder = _backend_encoder(resolved, backend, train)
    return Source(resolved=resolved, train=train, base=base, backend=backend, backend_encoder=encoder)


def predict_cluster(
    source: Source,
    prepared: Prepared | None,
    writer: PredictionWriter,
    stop: StopFlag,
    progress: Progress | None = None,
) -> Generation | None:
    """Write every prediction that is missing: by the method itself, by a back end, or through the adapter.

    Args:
        prepared: the model with the cluster's adapter; None if no model is loaded here.
        progress: counts predictions; None for a progress bar of this call's own.

    Returns: what it cost; None if no model generated.
    """
    method = source.resolved.method
    if isinstance(method, Baseline):
        predict_without_model(method, writer, source.train, stop, progress)
        return None
    if prepared is None:
        assert source.backend is not None
        assert source.backend_encoder is not None
        return predict_with_backend(source.backend, source.backend_encoder, writer, stop, progress)
    return predict_with_model(answering(source.resolved, prepared, source.processes), writer, stop, progress)


def _backend_encoder(resolved: Resolved, backend: InferenceBackend, train: SplitExamples | None) -> Encoder:
    """The settings of a back end's prompts. Raises: UsageError for a value of --prompt that it does not support."""
    spec = resolved.spec
    check_backend_style(backend, spec.backend, spec.prompt, spec.template)
    tokenizer = tokenizer_of(backend)
    if backend.tokenizer is not None:
        check_style(tokenizer, spec.prompt, spec.template)
    return Encoder(
        tokenizer=tokenizer,
        style=spec.prompt,
        template=spec.template,
        eos=int(tokenizer.eos_token_id or 0),
        max_length=max_length_of(backend, spec.train.max_length),
        limits=generation_limits(tokenizer, train, list(resolved.evaluated.by_task), spec.eval.max_new_tokens),
        shots=draw_shots(resolved, train),
        n_shots=spec.shots,
    )


def answering(resolved: Resolved, prepared: Prepared, processes: ProcessGroup = SINGLE_PROCESS) -> Answering:
    """How a prepared run answers examples. processes: those that share the work."""
    made = generator(resolved, prepared, processes)
    return Answering(generator=made, encoder=prepared.encoder, tasks=resolved.suite.tasks)


def generator(resolved: Resolved, prepared: Prepared, processes: ProcessGroup = SINGLE_PROCESS) -> Generator:
    """The generator of a prepared run."""
    return Generator(
        prepared.loaded,
        prepared.adapter,
        prepared.routes,
        folds=Trait.FOLDS in resolved.method.traits,
        batch_tokens=resolved.spec.eval.batch_tokens,
        reads=Trait.LABEL_FREE in resolved.method.traits,
        processes=processes,
    )
