"""The data for a run's pictures in a few kilobytes: published records contain it instead of logs and artefacts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from harness.errors import StoreError
from harness.method import ArtefactKind
from harness.store.artefacts import read_artefacts
from harness.store.record import Frozen
from harness.store.run_directory import RunDirectory

FILE: Final = "digest.json"
_PARTS: Final = 20  # A loss curve is averaged over this many parts of the training.
_DIGITS: Final = 4
_BLOCK: Final = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")

Weights = Mapping[str, Mapping[str, Sequence[float]]]  # gate -> task -> a number for each expert


class Digest(Frozen):
    """The numbers of a run's pictures, to four digits.

    losses: training losses, averaged over equal parts of the steps; stages follow one another.
    task_losses: the same for each task, over equal parts of the steps with examples of the task; empty in records from
        before it was kept.
    gates: task -> block of the model, from the first (gates of one block are averaged) -> a weight for each expert.
    skills: task -> the weight of each skill, averaged over layers.
    Both are empty if the run has none, or if its clusters have several.
    """

    losses: tuple[float, ...] = ()
    task_losses: dict[str, tuple[float, ...]] = {}
    gates: dict[str, tuple[tuple[float, ...], ...]] = {}
    skills: dict[str, tuple[float, ...]] = {}


def read_digest(run: RunDirectory) -> Digest:
    """The digest of a published record, or one computed from a run's logs and artefacts. Raises: StoreError."""
    path = run.path / FILE
    try:
        return Digest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return make_digest(run)
    except ValidationError as error:
        raise StoreError(f"{path} is damaged. Publish the run again: harness verify RUN --publish") from error


def make_digest(run: RunDirectory) -> Digest:
    """From train.jsonl (or train/*.jsonl) and the artefacts of the kinds gates and skills."""
    losses: list[float] = []
    of_tasks: dict[str, list[float]] = {}
    for line in _steps(run.path):
        losses.append(line["loss"])
        for task, loss in line.get("tasks", {}).items():
            of_tasks.setdefault(task, []).append(loss)
    gates, skills = (_weights(run, kind) for kind in (ArtefactKind.GATES, ArtefactKind.SKILLS))
    blocks = list(_blocks(gates).values())
    return Digest(
        losses=_averaged(losses),
        task_losses={task: _averaged(values) for task, values in of_tasks.items()},
        gates={t: tuple(_mean(gates, names, t) for names in blocks) for t in _tasks(gates)},
        skills={t: _mean(skills, list(skills), t) for t in _tasks(skills)},
    )


def _averaged(losses: Sequence[float]) -> tuple[float, ...]:
    """Means over equal parts of the losses."""
    parts = np.array_split(np.asarray(losses), min(_PARTS, len(losses))) if losses else []
    return tuple(_round(float(part.mean())) for part in parts)


def _steps(run: Path) -> Iterator[Mapping[str, Any]]:
    """The lines of training steps, without those of evaluations on dev."""
    for log in (run / "train.jsonl", *sorted((run / "train").glob("*.jsonl"))):
        for line in log.read_text("utf-8").splitlines() if log.exists() else ():
            step = json.loads(line)
            if isinstance(step.get("loss"), float):
                yield step


def _weights(run: RunDirectory, kind: ArtefactKind) -> Weights:
    """The artefacts of one kind; empty if there are none, or if their gates have different numbers of experts."""
    value: dict[str, Any] = {}
    for artefact in read_artefacts(run.artefacts, kind).values():
        value |= artefact
    lines = [line for of_gate in value.values() for line in of_gate.values()]
    numbers = all(isinstance(line, list) and all(isinstance(x, int | float) for x in line) for line in lines)
    return value if numbers and len({len(line) for line in lines}) == 1 else {}


def _tasks(weights: Weights) -> list[str]:
    """The tasks with a weight in every gate."""
    found = dict.fromkeys(task for of_gate in weights.values() for task in of_gate)
    return [t for t in found if all(t in of_gate for of_gate in weights.values())]


def _blocks(weights: Weights) -> dict[int, list[str]]:
    """The gates by the number of their block in the model; -1 for gates outside blocks."""
    gates: dict[int, list[str]] = {}
    for gate in weights:
        number = _BLOCK.search(gate)
        gates.setdefault(int(number.group(1)) if number else -1, []).append(gate)
    return dict(sorted(gates.items()))


def _mean(weights: Weights, gates: Sequence[str], task: str) -> tuple[float, ...]:
    return tuple(_round(float(x)) for x in np.mean([weights[g][task] for g in gates], axis=0))


def _round(value: float) -> float:
    return round(value, _DIGITS) + 0.0  # Adding 0.0 turns -0.0 into 0.0.
