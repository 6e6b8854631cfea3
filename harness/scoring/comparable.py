"""What two runs must have in common to be compared: the same question, and the same effort in training.

The *question* is what the scores are about: tasks, data, split, base model, prompt and shots. Runs with different
questions are in different tables. The *effort* is what training may use: budget, steps, batches, examples, loss. Runs
with different efforts may be in one table, but they are neither ranked nor tested against each other. Everything
else, such as the method's fields, the learning rate and the balance of tasks, is the method's own.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from typing import Final

from harness.config.spec import RunSpec, Runtime, TrainConfig
from harness.reporting.numbers import MISSING

_QUESTION: Final = ("suite", "data", "model", "eval", "prompt", "template", "shots")
_NOT_ASKED: Final = ("data.label", "model.label", "eval.batch_tokens", "eval.max_new_tokens")
_OWN: Final = ("train.lr", "train.balance")


# By the id of a spec, which never changes: tables compare each spec with every other one.
_FLAT: Final[dict[int, Mapping[str, str]]] = {}


def flat(spec: RunSpec) -> Mapping[str, str]:
    """Every field of a spec as ``key: JSON value``, with defaults and labels, without the seed."""
    found = _FLAT.get(id(spec))
    if found is None:
        found = _FLAT[id(spec)] = _flatten(spec)
        weakref.finalize(spec, _FLAT.pop, id(spec))
    return found


def _flatten(spec: RunSpec) -> dict[str, str]:
    values: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            values[prefix] = json.dumps(value, ensure_ascii=False)

    walk("", spec.model_dump(mode="json", exclude={"seed"}))
    return values


def differing(specs: Sequence[RunSpec]) -> list[str]:
    """The keys in which specs differ, without the seed, in the order of the spec."""
    flats = [flat(spec) for spec in specs]
    keys = dict.fromkeys(key for f in flats for key in f)
    return [key for key in keys if len({f.get(key) for f in flats}) > 1]


def question(spec: RunSpec, *, model: bool = True) -> dict[str, str]:
    """The fields that decide what a score is about. model: whether the base model is one of them."""
    sections = _QUESTION if model else tuple(name for name in _QUESTION if name != "model")
    return {k: v for k, v in flat(spec).items() if k.split(".")[0] in sections and k not in _NOT_ASKED}


def effort(spec: RunSpec) -> dict[str, str]:
    """The fields that decide what training may use."""
    runtime = {f"train.{name}" for name, field in TrainConfig.model_fields.items() if Runtime in field.metadata}
    found = {k: v for k, v in flat(spec).items() if k.split(".")[0] == "train" and k not in runtime and not _own(k)}
    parent = None if spec.parent is None else spec.parent.run_id
    return {**found, "budget": json.dumps(spec.budget), "--from": json.dumps(parent)}


def _own(key: str) -> bool:
    return any(key == own or key.startswith(f"{own}.") for own in _OWN)


def other_effort(a: RunSpec, b: RunSpec, free: Sequence[str] = ()) -> str | None:
    """In words, how the efforts of two trained runs differ; None if they are equal.

    Args: free: keys that may differ, because they were chosen on dev.
    """
    one, two = effort(a), effort(b)
    keys = [key for key in one if one[key] != two.get(key) and key not in free]
    values = [f"{key} {_word(one[key])} and {_word(two.get(key))}" for key in keys]
    return f"different effort: {'; '.join(values)}" if keys else None


def _word(value: str | None) -> str:
    return MISSING if value is None or value == "null" else value.strip('"')
