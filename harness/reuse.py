"""Stages that another finished run has already trained, so that nothing is trained twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from harness.adapter_file import read_weights
from harness.errors import HarnessError, StoreError
from harness.method import Method
from harness.parent import method_of
from harness.spec import RunSpec, canonical
from harness.store import RunDirectory, State, find_runs


@dataclass(frozen=True, kw_only=True)
class Reused:
    """The adapter state of a run that has trained the stage."""

    run: str
    state: Mapping[str, Tensor]


def find_stage(out: Path, spec: RunSpec, method: Method, stage: str) -> Reused | None:
    """A finished run in the same folder that trained this stage under the same spec but for its method.

    Stages are the same where ``Method.stage_key`` says so, and a run's adapter holds those of ``Method.kept_stages``.
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
    content = json.loads(canonical(spec))
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
        other = method_of(spec)
        if key not in {other.stage_key(s, tasks) for s in other.kept_stages(tasks)}:
            return None
        return load(read_weights(run.adapter))
    except (StoreError, HarnessError, TypeError, SafetensorError):
        return None  # a run that cannot be read has nothing to give; this one trains for itself
