"""Reuse of the training of another finished run: a stage of a method, or the whole training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors.torch import load
from torch import Tensor

from harness.config.clusters import clusters_of
from harness.config.method_config import method_of
from harness.config.spec import EvalConfig, RunSpec, canonical, run_id
from harness.errors import HarnessError, StoreError
from harness.method import AdapterMethod
from harness.registry import method_class
from harness.store.adapter import META, WEIGHTS, has_adapter, read_meta, read_weights
from harness.store.affinity import ARTEFACT
from harness.store.files import write_atomic, write_json
from harness.store.record import Frozen, TrainingSummary
from harness.store.run_directory import TUNING_FOLDER, RunDirectory, State, find_runs

_FILE: Final = "taken.json"
_COPIED: Final = ("train.jsonl", "train/*.jsonl", "artefacts/**/*.json")


# A stage


@dataclass(frozen=True, kw_only=True)
class ReusedStage:
    """The state of an adapter that holds the trained stage, and the name of the run that it is from."""

    run: str
    state: Mapping[str, Tensor]


def find_stage(out: Path, spec: RunSpec, method: AdapterMethod, stage: str) -> ReusedStage | None:
    """Find a finished run in the folder ``out`` that trained this stage on the same data with the same settings.

    Two methods train the same stage where ``stage_key`` is equal, and the adapter of a finished run holds the stages of
    ``kept_stages``.
    """
    tasks = list(spec.suite.tasks)
    key = method.stage_key(stage, tasks)
    if key is None or spec.clusters is not None:
        return None  # the stages of a cluster are trained on its own tasks only
    wanted = training_key(spec)
    for run in find_runs(out):
        state = _stage_state(run, wanted, key, tasks)
        if state is not None:
            return ReusedStage(run=run.name, state=state)
    return None


def training_key(spec: RunSpec) -> str:
    """What decides the result of a stage except for the method: data, model, training settings, clusters and seed.

    The limit on new tokens belongs to it, since prompts have less room in training where predictions have more.
    """
    content = spec.identity()
    for name in ("method", "eval", "budget", "parent"):
        content.pop(name, None)
    return json.dumps({**content, "max_new_tokens": spec.eval.max_new_tokens}, sort_keys=True)


def _stage_state(run: RunDirectory, wanted: str, key: str, tasks: Sequence[str]) -> Mapping[str, Tensor] | None:
    if run.state() is not State.DONE:
        return None
    try:
        spec = run.spec()
        if spec is None or spec.parent is not None or training_key(spec) != wanted:
            return None
        other = method_of(spec)
        if not isinstance(other, AdapterMethod):
            return None
        if key not in {other.stage_key(s, tasks) for s in other.kept_stages(tasks)}:
            return None
        weights = read_weights(run.adapter)
    except HarnessError:
        return None  # another version of the method or damaged files: this run trains the stage itself
    return load(weights)


# A whole training


class ReusedTraining(Frozen):
    """taken.json: the run that trained the adapter, and what the training cost there."""

    run: str
    training: TrainingSummary


def reuse_training(run: RunDirectory, spec: RunSpec) -> ReusedTraining | None:
    """Copy the adapter, log and artefacts of a finished run that trained with equal settings.

    Runs in the folder of this one are considered, and those that tuned hyper-parameters. Called again, it returns what
    was copied before.

    Returns: None if there is no such run, or if this run has already begun to train.
    """
    clusters = [run.of(c.name) for c in clusters_of(spec)]
    if (run.path / _FILE).exists() and all(has_adapter(c.adapter) for c in clusters):
        return ReusedTraining.model_validate_json((run.path / _FILE).read_bytes())
    if any(c.checkpoints.exists() for c in clusters):
        return None
    wanted = _evaluation_free(spec)
    for other in [*find_runs(run.path.parent), *find_runs(run.path.parent / TUNING_FOLDER)]:
        theirs = other.spec()
        if theirs is None or other.name == run.name or _evaluation_free(theirs) != wanted:
            continue
        record = other.record() if other.state() is State.DONE else None
        if spec.train.affinity is not None and not _has_affinity(other, spec):
            continue  # its training has not measured what this run is to measure
        if record is not None and record.training is not None:
            reused = ReusedTraining(run=other.name, training=record.training)
            if _copy(other, run, spec, reused):
                return reused
    return None


def _has_affinity(run: RunDirectory, spec: RunSpec) -> bool:
    return all((run.of(c.name).artefacts / f"{ARTEFACT}.json").exists() for c in clusters_of(spec))


def _evaluation_free(spec: RunSpec) -> bytes:
    """The spec without what only inference uses: evaluation, the method's inference fields, the ablation's name.

    The limit on new tokens stays, because it limits prompts in training too.
    """
    inference = method_class(spec.method.name).inference_fields
    method = spec.method.model_copy(
        update={
            "ablation": None,
            "preset": None,
            "fields": {name: value for name, value in spec.method.fields.items() if name not in inference},
        }
    )
    evaluation = EvalConfig(max_new_tokens=spec.eval.max_new_tokens)
    return canonical(spec.model_copy(update={"eval": evaluation, "method": method}))


def _copy(source: RunDirectory, run: RunDirectory, spec: RunSpec, reused: ReusedTraining) -> bool:
    """Copy a training, the weights last; False where the source's weights are damaged or missing."""
    names = [c.name for c in clusters_of(spec)]
    try:
        weights = {name: read_weights(source.of(name).adapter) for name in names}
    except StoreError:
        return False
    for pattern in _COPIED:
        for path in source.path.glob(pattern):
            write_atomic(run.path / path.relative_to(source.path), path.read_bytes())
    run.write(_FILE, reused)
    for name in names:
        folder = run.of(name).adapter
        write_atomic(folder / WEIGHTS, weights[name])
        write_json(folder / META, {**read_meta(source.of(name).adapter), "run_id": run_id(spec)})
    return True
