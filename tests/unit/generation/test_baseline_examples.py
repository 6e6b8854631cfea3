"""What a method without a model gets of the examples that it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.generation.backend import predict_without_model
from harness.generation.predictions import PredictionWriter
from harness.store.run_directory import RunDirectory
from harness.task import Example


@dataclass
class Curious:
    """Keeps the examples that it is asked about."""

    asked: list[Example] = field(default_factory=list)

    def predict(self, examples: Sequence[Example], train: Sequence[Example]) -> list[str]:
        self.asked += examples
        return ["car"] * len(examples)


def test_a_baseline_gets_neither_the_target_nor_the_document(tmp_path: Path) -> None:
    toy = Example(id="1", task="toys", prompt="which?", target="car", choices=("car", "doll"), document='{"gold": 0}')
    method: Any = Curious()
    stop: Any = SimpleNamespace(check=lambda: None)
    predict_without_model(method, PredictionWriter(run=RunDirectory(tmp_path), examples={"toys": [toy]}), None, stop)
    assert method.asked == [Example(id="1", task="toys", prompt="which?", target="", choices=("car", "doll"))]
