"""LoRAHub (arXiv 2307.13269), after the released code: LoRAs trained alone, then weights of them searched per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from harness.errors import HarnessError, UsageError
from harness.method import Adapter, Ranks, Trainer, Trait
from methods.base import (
    AdaptedLinear,
    Gate,
    LoRAAdapter,
    LoRAMethod,
    Site,
    TaskLinear,
    gate_weights,
    number,
    one_of,
    train_alone,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Weights = NDArray[np.float64]

REMEMBER = 10  # trials between two checkpoints of a search


class HubGate(Gate):
    """Searched weights of all LoRAs, a row for each task; a task that was not searched uses its own LoRA."""

    weights: Tensor

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.eye(n_tasks))

    def table(self) -> Tensor:
        return self.weights


@dataclass(frozen=True, kw_only=True)
class LoRAHub(LoRAMethod):
    """Stage 1: ``lora_single``. Stage 2, per task: minimise loss(w) + l1 mean_k |w_k| without gradients.

    The loss is the mean over ``shots`` training examples (each the mean over its tokens); w starts at 0 and stays
    within +-bound; ``steps`` losses are looked at by nevergrad's NGOpt, seeded by the run's seed and the task.

    rank: of each LoRA. merge: of LoRAs by "factor", as in the release, or by "output".
    exclude_target: a task's own LoRA takes no part in its mixture.
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.TRAINS, Trait.ROUTED, Trait.FOLDS})
    summary: ClassVar[str] = "LoRAs trained alone, mixed by weights found without gradients"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "output": {"merge": "output"},
        "others": {"exclude_target": True},
    }

    rank: int = 16
    shots: int = 5
    steps: int = 40
    bound: float = 1.5
    l1: float = 0.05
    merge: str = "factor"
    exclude_target: bool = False

    def __post_init__(self) -> None:
        one_of("method.merge", self.merge, ["factor", "output"])

    def ranks(self, n_tasks: int) -> Ranks:
        stored = n_tasks * self.rank
        return Ranks(stored=stored, active=stored if self.merge == "output" else self.rank)

    def layer(self, site: Site) -> AdaptedLinear:
        return TaskLinear(
            site,
            experts=site.tasks,
            rank=self.rank,
            scale=self.alpha / self.rank,
            mixture=site.shared("hub", lambda: HubGate(len(site.tasks))),
            merge=self.merge,
        )

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """Train each LoRA alone, search each task's weights, keep weights and trials for reports."""
        hub = cast("LoRAAdapter", adapter)
        if self.exclude_target and len(tasks) < 2:
            raise UsageError("method.exclude_target=true needs at least 2 tasks")
        require_nevergrad()
        with hub.unmixed():
            train_alone(hub, trainer, tasks)
        for task in tasks:
            self.search(hub, trainer, task)
        trainer.artefact("gates", gate_weights(hub))
        trainer.artefact("trials", {task: trainer.recall(f"search-{task}") for task in tasks})

    def stage_key(self, stage: str, tasks: Sequence[str]) -> str | None:
        return self.alone_key(stage, self.rank) if stage in tasks else None

    def kept_stages(self, tasks: Sequence[str]) -> Sequence[str]:
        return tasks

    def search(self, hub: LoRAAdapter, trainer: Trainer, task: str) -> None:
        """Find one task's weights. Raises: as ``tried``."""
        stage = f"search-{task}"
        examples = [] if trainer.done(stage) else trainer.examples(task, self.shots, stage)
        if not examples:
            return
        mine = hub.tasks.index(task)
        sources = [i for i in range(len(hub.tasks)) if not (self.exclude_target and i == mine)]
        row = cast("HubGate", hub.modules["hub"]).weights[mine]

        def loss(weights: Weights) -> float:
            put(row, sources, weights)
            return trainer.loss(examples) + self.l1 * float(abs(weights).mean())

        put(row, sources, self.tried(len(sources), loss, trainer, stage, number(trainer.seed, "lorahub", task) % 2**32))
        trainer.finish(stage)

    def tried(self, n: int, loss: Callable[[Weights], float], trainer: Trainer, stage: str, seed: int) -> Weights:
        """The best n weights after all trials. On resume the remembered trials are told to a fresh optimiser again.

        Raises: HarnessError where that does not ask for the remembered weights (another version of nevergrad).
        """
        trials: list[list[Any]] = trainer.recall(stage) or []
        optimiser = self.optimiser(n, seed)
        try:
            for step in range(self.steps):
                candidate = optimiser.ask()
                if step == len(trials):
                    trials.append([[float(w) for w in candidate.value], loss(candidate.value)])
                    if len(trials) in (self.steps, *range(0, self.steps, REMEMBER)):
                        trainer.remember(stage, trials)
                elif abs(candidate.value - trials[step][0]).max() > 1e-9:
                    raise HarnessError(
                        f"{stage} cannot go on: nevergrad asks for other weights at trial {step + 1} than before. Use "
                        "the version that started the run, or start again"
                    )
                optimiser.tell(candidate, trials[step][1])
            found: Weights = optimiser.provide_recommendation().value
            return found
        finally:
            # What NGOpt chooses may run in a thread that ends with the optimiser; kept by a traceback, it would keep
            # the process from ending.
            del optimiser

    def optimiser(self, n: int, seed: int) -> Any:
        """NGOpt over n weights between -bound and bound, the first candidate 0."""
        import numpy as np

        ng = require_nevergrad()
        space = ng.p.Array(init=np.zeros(n), lower=-self.bound, upper=self.bound)
        space.random_state = np.random.RandomState(seed)
        return ng.optimizers.NGOpt(parametrization=space, budget=self.steps)


def put(row: Tensor, sources: Sequence[int], values: Weights) -> None:
    """Write the weights of the LoRAs that take part; those of the others are 0."""
    row.zero_()
    row[list(sources)] = torch.as_tensor(values, dtype=row.dtype, device=row.device)


def require_nevergrad() -> Any:
    """The module nevergrad. Raises HarnessError saying how to install it."""
    try:
        import nevergrad
    except ImportError as error:
        raise HarnessError("lorahub searches with nevergrad: pip install 'mtlora-harness[lorahub]'") from error
    return nevergrad
