"""Stages that another finished run has already trained, so that nothing is trained twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from harness.config.clusters import clusters_of
from harness.config.method_config import method_of
from harness.config.spec import EvalConfig, RunSpec, canonical, run_id
from harness.errors import HarnessError, StoreError
from harness.method import AdapterMethod, adapter_method
from harness.store.adapter import META, WEIGHTS, has_adapter, read_meta, read_weights
from harness.store.files import write_atomic, write_json
from harness.store.record import Frozen, TrainingSummary
from harness.store.run_directory import TUNING_FOLDER, RunDirectory, State, find_runs


@dataclass(frozen=True, kw_only=True)
class Reused:
    """The adapter state of a run that has trained the stage."""

    run: str
    state: Mapping[str, Tensor]


def find_stage(out: Path, spec: RunSpec, method: AdapterMethod, stage: str) -> Reused | None:
    """A finished run in the same folder that trained this stage under the same spec but for its method.

    Stages with equal ``AdapterMethod.stage_key`` are the same, and a run's adapter holds those of ``kept_stages``.
    """
    tasks = list(spec.suite.tasks)
    key = method.stage_key(stage, tasks)
    if key is None or spec.clusters is not None:
        return None  # the stages of a cluster are those of its own tasks
    wanted = training_key(spec)
    for run in find_runs(out):
        found = _state(run, wanted, key, tasks)
        if found is not None:
            return Reused(run=run.name, state=found)
    return None


def training_key(spec: RunSpec) -> str:
    """Everything that decides a stage, the method and what it goes on from left aside: data, model, settings, seed."""
    content = spec.identity()
    for name in ("method", "eval", "budget", "parent"):
        content.pop(name, None)
    return json.dumps(content, sort_keys=True)


def _state(run: RunDirectory, wanted: str, key: str, tasks: Sequence[str]) -> Mapping[str, Tensor] | None:
    if run.state() is not State.DONE:
        return None
    try:
        spec = run.spec()
        if spec is None or spec.parent is not None or training_key(spec) != wanted:
            return None
        other = adapter_method(method_of(spec))
        if key not in {other.stage_key(s, tasks) for s in other.kept_stages(tasks)}:
            return None
        return load(read_weights(run.adapter))
    except (StoreError, HarnessError, TypeError, SafetensorError):
        return None  # a run that cannot be read has nothing to give; this one trains for itself


_FILE = "taken.json"


class Taken(Frozen):
    """taken.json: the run that trained the adapter, and what that took."""

    run: str
    training: TrainingSummary


def take_training(run: RunDirectory, spec: RunSpec) -> Taken | None:
    """Put the adapter of a finished run with the same training here, its log and artefacts too.

    The run is looked for beside this one and among the runs that tuned. None where there is none, or where this run has
    begun to train by itself. The same call again finds what it took.
    """
    adapters = [run.of(c.name).adapter for c in clusters_of(spec)]
    path = run.path / _FILE
    if path.exists() and all(has_adapter(folder) for folder in adapters):
        return Taken.model_validate_json(path.read_bytes())
    if any(run.of(c.name).checkpoints.exists() for c in clusters_of(spec)):
        return None
    wanted = _key(spec)
    for other in [*find_runs(run.path.parent), *find_runs(run.path.parent / TUNING_FOLDER)]:
        found = other.spec()
        if found is None or other.name == run.name or _key(found) != wanted or other.state() is not State.DONE:
            continue
        record = other.record()
        if record is not None and record.training is not None and _copy(other, run, spec):
            return Taken.model_validate_json(path.read_bytes())
    return None


def _key(spec: RunSpec) -> bytes:
    """Everything but how the run is evaluated; the limit on answers is kept, for it decides the room for prompts."""
    return canonical(spec.model_copy(update={"eval": EvalConfig(max_new_tokens=spec.eval.max_new_tokens)}))


def _copy(source: RunDirectory, run: RunDirectory, spec: RunSpec) -> bool:
    """Weights last; False where they are damaged or gone."""
    record = source.record()
    assert record is not None
    assert record.training is not None
    try:
        weights = {c.name: read_weights(source.of(c.name).adapter) for c in clusters_of(spec)}
    except StoreError:
        return False
    for pattern in ("train.jsonl", "train/*.jsonl", "artefacts/**/*.json"):
        for path in source.path.glob(pattern):
            write_atomic(run.path / path.relative_to(source.path), path.read_bytes())
    run.write(_FILE, Taken(run=source.name, training=record.training))
    for cluster in clusters_of(spec):
        folder = run.of(cluster.name).adapter
        write_atomic(folder / WEIGHTS, weights[cluster.name])
        write_json(folder / META, {**read_meta(source.of(cluster.name).adapter), "run_id": run_id(spec)})
    return True
