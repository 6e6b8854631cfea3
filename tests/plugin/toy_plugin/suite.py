"""Three tasks about toys: name the colour, count the toys, say which toy comes first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import DataError
from harness.task import NOT_PARSED, Example, Protocol, Statistics, Suite, Task

_COLOURS = ("red", "blue", "green")
_TOYS = ("car", "doll", "kite", "drum", "ball", "robot")


def _parse(text: str, example: Example) -> Any:
    return text.strip() or NOT_PARSED


def _statistics(golds: Sequence[Any], answers: Sequence[Any]) -> Statistics:
    per_unit = np.array([[float(a == g), 1.0] for g, a in zip(golds, answers, strict=True)]).reshape(-1, 2)
    return Statistics(per_unit=per_unit, values=lambda sums: {"accuracy": sums[..., 0] / np.maximum(sums[..., 1], 1)})


def _task(name: str, kind: str) -> Task:
    exact = Protocol(parse=_parse, statistics=_statistics, headline="accuracy")
    return Task(name=name, version=1, kind=kind, protocols={"official": exact})


def make_examples(split: str, n: int) -> list[dict[str, Any]]:
    """n examples of each task; the splits have different numbers in their prompts."""
    start = {"train": 0, "dev": 500, "test": 800}[split]
    examples = []
    for i in range(start, start + n):
        colour, toy, other = _COLOURS[i % 3], _TOYS[i % 6], _TOYS[(i // 6) % 6]
        text = f"the {colour} {toy} {i} and a {other}"
        for task, target in (("colour", colour), ("first", toy), ("last", other)):
            examples.append(
                {"id": f"{split}-{task}-{i}", "task": task, "prompt": f"{task}: {text} =", "target": target}
            )
    return examples


@dataclass(frozen=True, kw_only=True)
class Toys(Suite):
    """Sentences about toys."""

    name = "toys"
    version = 1
    shout: bool = False

    @property
    def tasks(self) -> Mapping[str, Task]:
        return {"colour": _task("colour", "label"), "first": _task("first", "copy"), "last": _task("last", "copy")}

    @property
    def sample(self) -> Path:
        return Path(__file__).parent / "data"

    def files(self, source: str) -> Sequence[Path]:
        """The files whose hashes identify the data: with them, the suite needs no ``fingerprint`` of its own."""
        found = sorted(Path(source).glob("*.jsonl"))
        if not found:
            raise DataError(f"{source}: no such data: toys need train.jsonl, dev.jsonl and test.jsonl")
        return found

    def splits(self, source: str) -> Sequence[str]:
        return [s for s in ("train", "dev", "test") if (Path(source) / f"{s}.jsonl").exists()]

    def read(self, source: str, split: str) -> Any:
        from datasets import Dataset, Features, List, Value

        path = Path(source) / f"{split}.jsonl"
        if not path.exists():
            raise DataError(f"{path} does not exist: toys need train.jsonl, dev.jsonl and test.jsonl")
        examples = [{**json.loads(line), "choices": None} for line in path.read_text().splitlines()]
        text = dict.fromkeys(("id", "task", "prompt", "target"), Value("string"))
        return Dataset.from_list(examples, features=Features({**text, "choices": List(Value("string"))}))
