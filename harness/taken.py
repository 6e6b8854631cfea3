"""A whole training that another finished run has already made: its adapter is taken, and the record says from where.

A learning rate is chosen on dev; the chosen one's first seed is then evaluated on test, and its training is the same.
"""

from __future__ import annotations

from harness.adapter_file import META, WEIGHTS, has_adapter, read_meta, read_weights
from harness.clusters import clusters_of
from harness.errors import StoreError
from harness.record import Frozen, TrainingSummary
from harness.spec import EvalConfig, RunSpec, canonical, run_id
from harness.store import RunDirectory, State, find_runs, write_atomic, write_json
from harness.tuning import FOLDER

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
    for other in [*find_runs(run.path.parent), *find_runs(run.path.parent / FOLDER)]:
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
