"""The kinds of training stages of a method, each measured once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from harness.bench.contenders import OPTIMISER, Contender, twin
from harness.method import AdapterMethod, ArtefactKind, Trait, iter_linear
from harness.models.loading import LoadedModel
from harness.models.parameter_count import size_of
from harness.task import Example
from harness.training.optimiser import TaskAdamW, trained_parameters


class StageRow(Protocol):
    """What was measured of a stage. n_tasks, n_trained: tasks and parameters that it trains."""

    @property
    def n_tasks(self) -> int: ...

    @property
    def n_trained(self) -> int: ...


R = TypeVar("R", bound=StageRow)


class _AllMeasured(Exception):
    """Everything that the method trains with gradients has been measured."""


class Stages(ABC, Generic[R]):
    """A ``Trainer`` that measures each kind of stage instead of training it.

    Args:
        loaded: its model stays as it is; the method gets a copy with the same weights in memory.
        n_tasks: the number of tasks, which are all equal.
    """

    seed = 0
    start = None

    def __init__(self, loaded: LoadedModel, method: AdapterMethod, n_tasks: int) -> None:
        self.loaded, self.method = loaded, method
        self.tasks = tuple(f"task{i}" for i in range(n_tasks))
        self.model = twin(loaded.model)
        self.layers = [n for n, _ in iter_linear(self.model)]
        linear = {n: self.model.get_submodule(n) for n in self.layers}
        self.adapter = method.attach(self.model, self.tasks, seed=self.seed)
        self.layers = [n for n in self.layers if self.model.get_submodule(n) is not linear[n]]
        self.size = size_of(method, self.adapter, self.tasks, self.model)
        self.rows: list[R] = []

    @abstractmethod
    def measure(self, stage: str, own: Contender, tasks: Sequence[str], n_trained: int) -> R:
        """The row of a stage that trains ``n_trained`` parameters of the adapter on the examples of some tasks."""

    def run(self) -> None:
        """Measure every kind of stage that the method trains."""
        try:
            self.method.fit(self.adapter, self, self.tasks)
        except _AllMeasured:
            return

    def train(
        self,
        stage: str,
        parameters: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        share: float = 1.0,
    ) -> None:
        everything = self.adapter.trainable()
        names = list(everything if parameters is None else parameters)
        n_tasks, n_trained = len(self.tasks if tasks is None else tasks), sum(everything[n].numel() for n in names)
        if any((r.n_tasks, r.n_trained) == (n_tasks, n_trained) for r in self.rows):
            return
        for name, parameter in everything.items():
            parameter.requires_grad_(name in set(names))
        optimiser = TaskAdamW(trained_parameters(self.adapter, self.method, names).values(), OPTIMISER)
        optimiser.present = frozenset(range(n_tasks))
        own = Contender(
            forward=self.model,
            adapter=self.adapter,
            optimiser=optimiser,
            reads=Trait.LABEL_FREE in self.method.traits,
        )
        self.rows.append(self.measure(stage, own, self.tasks if tasks is None else tasks, n_trained))
        for parameter in everything.values():
            parameter.requires_grad_(True)

    def examples(self, task: str, n: int, stage: str) -> list[Example]:
        return [Example(id=f"{task}-{i}", task=task, prompt="", target="") for i in range(n)]

    def loss(self, examples: Sequence[Example]) -> float:
        raise _AllMeasured

    def done(self, stage: str) -> bool:
        return False

    def finish(self, stage: str) -> None:
        pass

    def remember(self, key: str, value: Any) -> None:
        pass

    def recall(self, key: str) -> Any:
        return None

    def reuse(self, stage: str) -> Mapping[str, Tensor] | None:
        return None

    def artefact(self, name: str, value: Any, kind: ArtefactKind) -> None:
        pass
