"""Where the runs of a row come from: commands that make them again, code, packages, machine, data."""

from __future__ import annotations

import shlex
from typing import Any

from harness.config.clusters import clusters_of
from harness.leaderboard.publish import without_folders
from harness.scoring.groups import ScoredRun

Json = Any


def provenance_json(run: ScoredRun) -> dict[str, Json]:
    """One run. The command names folders of a machine by their last part only, as published records do."""
    record = run.record
    origin = record.provenance
    return {
        "name": run.directory.name,
        "run_id": record.run_id,
        "seed": record.spec.seed,
        "command": shlex.join(without_folders(origin.command)),
        "commit": origin.commit,
        "dirty": origin.dirty,
        "python": origin.python,
        "packages": origin.packages,
        "hardware": {key: str(value) for key, value in origin.hardware.items()},
        "settings": {key: str(value) for key, value in origin.settings.items()},
        "finished": record.finished_at.strftime("%Y-%m-%d %H:%M UTC"),
        "training": None if record.training is None else record.training.model_dump(mode="json"),
        "evaluation": None if record.generation is None else record.generation.model_dump(mode="json"),
        "clusters": {cluster.name: list(cluster.tasks) for cluster in clusters_of(record.spec)},
    }
