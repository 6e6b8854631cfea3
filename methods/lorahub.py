"""LoRAHub (arXiv 2307.13269), after the released code: LoRAs trained alone, then weights of them searched per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from harness.errors import HarnessError, UsageError
from harness.method import Adapter, ArtefactKind, Ranks, Trainer, Trait
from methods.base import (
    AdaptedLinear,
    Gate,
    LoRAAdapter,
    LoRAMethod,
    Parts,
    Site,
    TaskLinear,
    gate_weights,
    number,
    one_of,
    require_sites,
    train_alone,
)
from methods.layers.peft_io import FILES, peft_modules, peft_rank, read_peft

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Weights = NDArray[np.float64]

REMEMBER = 10  # trials between two checkpoints of a search


class HubGate(Gate):
    """Searched weights of all LoRAs, a row for each task; a task that was not searched uses its own LoRA.

    n_experts: of LoRAs that were read in and are no task's own; a task that was not searched uses none.
    """

    weights: Tensor

    def __init__(self, n_tasks: int, n_experts: int | None = None) -> None:
        super().__init__()
        self.register_buffer("weights", torch.eye(n_tasks) if n_experts is None else torch.zeros(n_tasks, n_experts))

    def table(self) -> Tensor:
        return self.weights


@dataclass(frozen=True, kw_only=True)
class LoRAHub(LoRAMethod):
    """Stage 1: ``lora_single``. Stage 2, per task: minimise loss(w) + l1 mean_k |w_k| without gradients.

    The loss is the mean over ``shots`` training examples (each the mean over its tokens); w starts at 0 and stays
    within +-bound; ``steps`` losses are looked at by nevergrad's NGOpt, seeded by the run's seed and the task.

    rank: of each LoRA. merge: of LoRAs by "factor", as in the release, or by "output".
    exclude_target: a task's own LoRA takes no part in its mixture.
    experts: folders of PEFT LoRAs, any number of them, in place of stage 1 (``rank`` is then theirs, the smaller ones
        filled up with zeros).
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.ROUTED, Trait.FOLDS})
    summary: ClassVar[str] = "LoRAs trained alone, mixed by weights found without gradients"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "output": {"merge": "output"},
        "others": {"exclude_target": True},
    }
    folders: ClassVar[Mapping[str, Sequence[str]]] = {"experts": FILES}

    rank: int = 16
    shots: int = 5
    steps: int = 40
    bound: float = 1.5
    l1: float = 0.05
    merge: str = "factor"
    exclude_target: bool = False
    experts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of("method.merge", self.merge, ["factor", "output"])
        if self.experts and self.exclude_target:
            raise UsageError(
                "method.exclude_target=true leaves out a task's own LoRA: method.experts are no task's own"
            )

    def ranks(self, n_tasks: int) -> Ranks:
        rank = self.rank_of_all()
        stored = (len(self.experts) or n_tasks) * rank
        return Ranks(stored=stored, active=stored if self.merge == "output" else rank)

    def rank_of_all(self) -> int:
        """Of the LoRAs: as told, or the largest of those that are read in."""
        return max(map(peft_rank, map(Path, self.experts))) if self.experts else self.rank

    def sites(self, model: nn.Module) -> Mapping[str, nn.Linear]:
        """Of read LoRAs, the layers that any of them adapts."""
        layers = super().sites(model)
        if not self.experts:
            return layers
        for folder in map(Path, self.experts):
            require_sites(folder, layers)
        used = {name for folder in self.experts for name in peft_modules(Path(folder))}
        return {name: layer for name, layer in layers.items() if name in used}

    def layer(self, site: Site) -> AdaptedLinear:
        read = [f"expert{i}" for i in range(len(self.experts))]
        rank = self.rank_of_all()
        return TaskLinear(
            site,
            experts=read or site.tasks,
            rank=rank,
            scale=1.0 if read else self.alpha / rank,
            mixture=site.shared("hub", lambda: HubGate(len(site.tasks), len(read) or None)),
            merge=self.merge,
        )

    def adapter(self, parts: Parts) -> LoRAAdapter:
        made = super().adapter(parts)
        for i, folder in enumerate(self.experts):
            made.put(i, read_peft(Path(folder)))
        return made

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """Train each LoRA alone, unless they are read in; search each task's weights; keep them for reports."""
        hub = cast("LoRAAdapter", adapter)
        if self.exclude_target and len(tasks) < 2:
            raise UsageError("method.exclude_target=true needs at least 2 tasks")
        require_nevergrad()
        if self.experts:
            trainer.artefact("experts", list(self.experts), ArtefactKind.OTHER)
        else:
            with hub.unmixed():
                train_alone(hub, trainer, tasks)
        for task in tasks:
            self.search(hub, trainer, task)
        trainer.artefact("gates", gate_weights(hub), ArtefactKind.GATES)
        trials = {task: trainer.recall(f"search-{task}") for task in tasks}
        trainer.artefact("trials", trials, ArtefactKind.OTHER)

    def stage_key(self, stage: str, tasks: Sequence[str]) -> str | None:
        return self.alone_key(stage, self.rank) if stage in tasks and not self.experts else None

    def kept_stages(self, tasks: Sequence[str]) -> Sequence[str]:
        return () if self.experts else tasks

    def search(self, hub: LoRAAdapter, trainer: Trainer, task: str) -> None:
        """Find one task's weights. Raises: as ``tried``."""
        stage = f"search-{task}"
        examples = [] if trainer.done(stage) else trainer.examples(task, self.shots, stage)
        if not examples:
            return
        mine = hub.tasks.index(task)
        row = cast("HubGate", hub.modules["hub"]).weights[mine]
        sources = [i for i in range(len(row)) if not (self.exclude_target and i == mine)]

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
