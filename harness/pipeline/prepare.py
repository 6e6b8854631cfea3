"""The objects that a run needs in memory, built from its resolved spec: training examples, encoder, model, adapter."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.config.clusters import Cluster
from harness.data.chat import check_style
from harness.data.encoding import Encoder, draw, generation_limits
from harness.data.mixture import Mixture, n_steps
from harness.data.routes import Routes
from harness.data.splits import Choice, SplitExamples, Use, load_split
from harness.errors import ModelError
from harness.method import Adapter, Baseline, adapter_method
from harness.pipeline.resolve import Resolved
from harness.store.run_directory import RunDirectory
from harness.task import Example

if TYPE_CHECKING:
    from harness.models.loading import LoadedModel
    from harness.runtime.distributed import ProcessGroup

_SMALL = 20_000_000
"""Models with fewer parameters run on one CPU thread."""

_LEAST_PROMPT = 16
"""Tokens that a prompt must have room for."""


def train_examples(resolved: Resolved) -> SplitExamples | None:
    """The training examples of the run's tasks; None if there is no train split and the method needs none.

    Raises: DataError if the method needs a train split that is missing, empty or without a single target.
    """
    suite, source = resolved.suite, resolved.source
    trains = resolved.method.trains
    needed = trains or isinstance(resolved.method, Baseline) or resolved.spec.shots > 0
    if not needed and "train" not in suite.splits(source):
        return None
    hint = f"{resolved.spec.method.name} needs training examples: give --data that have a train split"
    tasks, per_task = list(resolved.evaluated.by_task), resolved.spec.train.per_task
    use = Use(strict=resolved.all_tasks, allow_empty=not trains, needs_targets=needed)
    return load_split(suite, source, "train", tasks, Choice(per_task=per_task), hint=hint, use=use)


def mixture(resolved: Resolved, train: SplitExamples) -> Mixture:
    """The training plan of the mixed run."""
    config = resolved.spec.train
    total = sum(train.counts.values())
    return Mixture(
        examples=train,
        batch_size=config.batch_size,
        steps=n_steps(total, config.batch_size, config.epochs, config.steps),
        seed=resolved.spec.seed,
        temperature={"proportional": 1.0, "uniform": math.inf}.get(config.mixture) or config.temperature or 1.0,
    )


def encoder(resolved: Resolved, loaded: LoadedModel, train: SplitExamples | None) -> Encoder:
    """The encoder of prompts and targets. Raises: ModelError if the model's context is too short."""
    spec = resolved.spec
    check_style(loaded.tokenizer, spec.prompt, spec.template)
    tasks = list(resolved.evaluated.by_task)
    limits = generation_limits(loaded.tokenizer, train, tasks, spec.eval.max_new_tokens)
    length = min(spec.train.max_length, loaded.max_context or spec.train.max_length)
    long = {t: n for t, n in limits.items() if n + _LEAST_PROMPT > length}
    if long:
        task, n = max(long.items(), key=lambda item: item[1])
        raise ModelError(
            f"predictions of {task} may have up to {n} tokens, which leaves no room for a prompt in {length} tokens: "
            f"set a larger train.max_length (the model's context is {loaded.max_context}), a smaller "
            "eval.max_new_tokens, or leave the task out"
        )
    return Encoder(
        tokenizer=loaded.tokenizer,
        style=spec.prompt,
        template=spec.template,
        vocabulary=loaded.n_embeddings,
        eos=int(loaded.tokenizer.eos_token_id),
        max_length=length,
        limits=limits,
        shots=draw_shots(resolved, train),
        n_shots=spec.shots,
    )


def draw_shots(resolved: Resolved, train: SplitExamples | None) -> dict[str, list[Example]]:
    """In-context examples of each task."""
    spec = resolved.spec
    if not spec.shots or train is None:
        return {}
    # One more than needed, so that a training example that is itself a shot still gets all of them.
    return {t: draw(train, t, spec.shots + 1, spec.seed, "shots") for t in resolved.evaluated.by_task}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A run's model without an adapter.

    memory_before: bytes that the process had in memory before it loaded the model; None if they are not known.
    """

    loaded: LoadedModel
    encoder: Encoder
    memory_before: int | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run's model with the adapter of one cluster on it, ready to train and generate.

    routes: the cluster's tasks, as the adapter was attached for.
    """

    base: Base
    adapter: Adapter
    routes: Routes

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.routes.tasks

    @property
    def loaded(self) -> LoadedModel:
        return self.base.loaded

    @property
    def encoder(self) -> Encoder:
        return self.base.encoder


def load_base(resolved: Resolved, train: SplitExamples | None, processes: ProcessGroup | None = None) -> Base:
    """Load the base model and its tokenizer, and choose the lengths of prompts and predictions.

    Args: processes: those that work on the run together, over which ``train.shard_base`` divides the model.
    """
    # Imported before memory is measured, so that the import does not count as the model's memory.
    import transformers.modeling_utils  # noqa: F401

    from harness.generation.probe import check_generates
    from harness.models.loading import load_model
    from harness.runtime.deterministic import reserve_workspace
    from harness.runtime.memory import resident_bytes

    assert resolved.model is not None
    before = resident_bytes()
    if resolved.spec.train.deterministic:
        reserve_workspace()
    shards = resolved.spec.train.shard_base and processes is not None and processes.world_size > 1
    loaded = load_model(resolved.model, resolved.spec.train.precision, processes=processes if shards else None)
    _few_threads(loaded)
    check_generates(loaded)
    return Base(loaded=loaded, encoder=encoder(resolved, loaded, train), memory_before=before)


def _few_threads(loaded: LoadedModel) -> None:
    """Use one thread for a small model on a CPU, unless OMP_NUM_THREADS is set.

    Its layers are too small to be divided: on a busy machine several threads wait for each other at every layer (the
    tiny model beside other jobs: 400 tokens per second with two threads, 2,900 with one). The record has the number.
    """
    import torch

    if loaded.device.type == "cpu" and loaded.n_parameters < _SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def attach(resolved: Resolved, base: Base, cluster: Cluster) -> Prepared:
    """Put the adapter of a cluster on the model; ``prepared.adapter.detach()`` makes room for the next one."""
    routes = Routes(tuple(cluster.tasks))
    method = adapter_method(resolved.method)
    adapter = method.attach(base.loaded.model, routes.tasks, seed=resolved.spec.seed)
    return Prepared(base=base, adapter=adapter, routes=routes)


def open_adapter(run: RunDirectory, resolved: Resolved, base: Base, cluster: Cluster) -> Prepared:
    """The base model with a run's trained adapter of one cluster on it. Raises: StoreError for a damaged adapter."""
    from harness.store.adapter import load_into

    prepared = attach(resolved, base, cluster)
    if resolved.method.trains:
        load_into(run.of(cluster.name).adapter, prepared.adapter)
    return prepared
