"""Everything a run needs in memory, made from its resolved spec: rows, tokens, model, adapter."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from harness.config.clusters import Cluster
from harness.data.encoding import Encoder, check_style, draw, generation_limits
from harness.data.mixture import Mixture, n_steps
from harness.data.rows import Rows, group
from harness.errors import DataError, ModelError
from harness.method import Adapter, Baseline, adapter_method
from harness.pipeline.resolve import Resolved
from harness.store.run_directory import RunDirectory
from harness.task import Example

if TYPE_CHECKING:
    from harness.models.loading import LoadedModel

_SMALL = 20_000_000  # parameters
_LEAST_PROMPT = 16  # tokens of prompt without which no question can be asked


def train_rows(resolved: Resolved) -> Rows | None:
    """The training rows of the run's tasks; None where the source has no train split and the method needs none."""
    suite, source = resolved.suite, resolved.source
    if "train" not in suite.splits(source):
        if resolved.method.trains or isinstance(resolved.method, Baseline) or resolved.spec.shots:
            raise DataError(f"{source} has no train split, and {resolved.spec.method.name} needs one. See: --data")
        return None
    tasks = list(resolved.rows.by_task)
    rows = group(suite.read(source, "train"), "train", tasks, resolved.spec.train.per_task)
    if resolved.method.trains and not sum(rows.counts.values()):
        raise DataError(f"{source}: the train split has no rows of {', '.join(tasks)}")
    return rows


def mixture(resolved: Resolved, rows: Rows) -> Mixture:
    """The training plan of the mixed run."""
    config = resolved.spec.train
    total = sum(rows.counts.values())
    return Mixture(
        rows=rows,
        batch_size=config.batch_size,
        steps=n_steps(total, config.batch_size, config.epochs, config.steps),
        seed=resolved.spec.seed,
        temperature={"proportional": 1.0, "uniform": math.inf}.get(config.mixture) or config.temperature or 1.0,
    )


def encoder(resolved: Resolved, loaded: LoadedModel, rows: Rows | None) -> Encoder:
    """How prompts and targets become tokens. Raises: ModelError where the model's context is too short."""
    spec = resolved.spec
    check_style(loaded.tokenizer, spec.prompt)
    tasks = list(resolved.rows.by_task)
    limits = generation_limits(loaded.tokenizer, rows, tasks, spec.eval.max_new_tokens)
    length = min(spec.train.max_length, loaded.max_context or spec.train.max_length)
    long = {t: n for t, n in limits.items() if n + _LEAST_PROMPT > length}
    if long:
        task, n = max(long.items(), key=lambda item: item[1])
        raise ModelError(
            f"answers of {task} take up to {n} tokens, which leaves no room for a prompt in {length}: "
            f"set a larger train.max_length (the model's context is {loaded.max_context}), a smaller "
            "eval.max_new_tokens, or leave the task out"
        )
    return Encoder(
        tokenizer=loaded.tokenizer,
        style=spec.prompt,
        eos=int(loaded.tokenizer.eos_token_id),
        max_length=length,
        limits=limits,
        shots=draw_shots(resolved, rows),
        n_shots=spec.shots,
    )


def draw_shots(resolved: Resolved, rows: Rows | None) -> dict[str, list[Example]]:
    """In-context examples of each task."""
    spec = resolved.spec
    if not spec.shots or rows is None:
        return {}
    # One more than needed, so that a training row that is itself a shot still gets all of them.
    return {t: draw(rows, t, spec.shots + 1, spec.seed, "shots") for t in resolved.rows.by_task}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A run's model without an adapter.

    memory_before: bytes that the process had in memory before it loaded the model; None where nobody tells.
    """

    loaded: LoadedModel
    encoder: Encoder
    train: Rows | None
    memory_before: int | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared(Base):
    """A run's model with the adapter of one cluster, ready to train and generate. tasks: the cluster's, by route."""

    adapter: Adapter
    tasks: Sequence[str]


def load_base(resolved: Resolved, rows: Rows | None) -> Base:
    """Load the model, learn the lengths."""
    import transformers.modeling_utils  # noqa: F401  (what it takes is none of the model's memory)

    from harness.models.loading import load_model
    from harness.runtime.memory import resident_bytes

    assert resolved.model is not None
    before = resident_bytes()
    loaded = load_model(resolved.model, resolved.spec.train.precision)
    _few_threads(loaded)
    return Base(loaded=loaded, encoder=encoder(resolved, loaded, rows), train=rows, memory_before=before)


def _few_threads(loaded: LoadedModel) -> None:
    """One thread for a small model on a CPU, unless OMP_NUM_THREADS says otherwise.

    Its layers are too small to share: on a busy machine several threads wait for each other at every layer (the tiny
    model beside other jobs: 400 tokens a second with two threads, 2,900 with one). What was used stands in the record.
    """
    import torch

    if loaded.device.type == "cpu" and loaded.n_parameters < _SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def attach(resolved: Resolved, base: Base, cluster: Cluster) -> Prepared:
    """Put the adapter of a cluster on the model; ``prepared.adapter.detach()`` makes room for the next one."""
    adapter = adapter_method(resolved.method).attach(base.loaded.model, cluster.tasks, seed=resolved.spec.seed)
    parts = {f.name: getattr(base, f.name) for f in fields(Base)}
    return Prepared(**parts, adapter=adapter, tasks=cluster.tasks)


def open_adapter(run: RunDirectory, resolved: Resolved, base: Base, cluster: Cluster) -> Prepared:
    """The base model with a run's trained adapter of one cluster on it. Raises: StoreError for a damaged adapter."""
    from harness.store.adapter import load_into

    prepared = attach(resolved, base, cluster)
    if resolved.method.trains:
        load_into(run.of(cluster.name).adapter, prepared.adapter)
    return prepared
