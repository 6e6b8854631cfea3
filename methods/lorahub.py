"""LoRAHub (arXiv 2307.13269, after the released code): LoRAs trained alone, then weights searched for each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from harness.errors import HarnessError, UsageError
from harness.method import Adapter, ArtefactKind, Ranks, Trainer, Trait
from methods.base import (
    AdaptedLinear,
    Gate,
    LoRAAdapter,
    TargetModule,
    TaskLinear,
    alone_stage,
    gate_weights,
    generator,
    method_seed,
    require_choice,
    train_alone,
)
from methods.expert_folders import ExpertFolders

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Weights = NDArray[np.float64]

CHECKPOINT_EVERY = 10  # Trials between two checkpoints of a search.


class HubGate(Gate):
    """The searched weights of all LoRAs, (T, E). A task without a search uses its own LoRA with weight 1.

    n_experts: the number of LoRAs that were read from folders and belong to no task; a task without a search then uses
        none of them. None: there is one LoRA for each task.
    """

    weights: Tensor

    def __init__(self, n_tasks: int, n_experts: int | None = None) -> None:
        super().__init__()
        self.register_buffer("weights", torch.eye(n_tasks) if n_experts is None else torch.zeros(n_tasks, n_experts))

    def task_weights(self) -> Tensor:
        return self.weights


@dataclass(frozen=True, kw_only=True)
class LoRAHub(ExpertFolders):
    """h = W0 x + s (sum_k w_k B_k) (sum_k w_k A_k) x, with weights w of the LoRAs for each task.

    Stage 1 is ``lora_single``. Stage 2 minimises loss(w) + l1 mean_k |w_k| for each task, without gradients. The loss
    is the mean over ``shots`` training examples (each the mean over its tokens); w starts at 0, within +-bound.
    The optimiser is nevergrad's NGOpt with ``steps`` evaluations, seeded by the run's seed and the task.

    merge: LoRAs by "factor", as in the released code, or by "output".
    exclude_target: leave a task's own LoRA out of its mixture, as for the unseen tasks of the paper. A task without
        any other LoRA uses its own.
    n_modules: how many LoRAs each task's mixture has, drawn by the run's seed and the task (the paper draws 20 of 196);
        None: all.
    """

    version: ClassVar[int] = 2
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.ROUTED, Trait.FOLDS})
    summary: ClassVar[str] = "LoRAs trained alone, mixed by weights found without gradients"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "output": {"merge": "output"},
        "with_own": {"exclude_target": False},
    }

    shots: int = 5
    steps: int = 40
    bound: float = 1.5
    l1: float = 0.05
    merge: str = "factor"
    exclude_target: bool = True
    n_modules: int | None = None

    def __post_init__(self) -> None:
        require_choice("method.merge", self.merge, ["factor", "output"])
        if self.n_modules is not None and self.n_modules < 1:
            raise UsageError(f"method.n_modules={self.n_modules}: a mixture needs at least 1 LoRA")

    def ranks(self, n_tasks: int) -> Ranks:
        rank = self.expert_rank()
        stored = (len(self.experts) or n_tasks) * rank
        return Ranks(stored=stored, active=stored if self.merge == "output" else rank)

    def layer(self, target: TargetModule) -> AdaptedLinear:
        return TaskLinear(
            target,
            expert_names=self.expert_names(target.tasks),
            rank=self.expert_rank(),
            scale=self.expert_scale(),
            mixture=target.shared("hub", lambda: HubGate(len(target.tasks), len(self.experts) or None)),
            merge=self.merge,
        )

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """Train each LoRA alone unless they are read from folders; search each task's weights and save them."""
        hub = cast("LoRAAdapter", adapter)
        if self.experts:
            trainer.artefact("experts", list(self.experts), ArtefactKind.OTHER)
        else:
            with hub.without_mixture():
                train_alone(hub, trainer, tasks)
        for task in tasks:
            self.search(hub, trainer, task, self.sources(trainer, tasks, task))
        trainer.artefact("gates", gate_weights(hub), ArtefactKind.GATES)
        trials = {task: trainer.recall(f"search-{task}") for task in tasks}
        trainer.artefact("trials", trials, ArtefactKind.OTHER)

    def sources(self, trainer: Trainer, tasks: Sequence[str], task: str) -> list[int]:
        """The LoRAs that a task's mixture is made of, as indices in ascending order.

        LoRAs of tasks without training examples are left out, because their random factors A would meet the trained
        factors B of the others. Raises: UsageError if there are fewer than ``n_modules``.
        """
        if self.experts:
            found = list(range(len(self.experts)))
        else:
            found = [i for i, other in enumerate(tasks) if trainer.examples(other, 1, alone_stage(other))]
            if self.exclude_target:
                found = [i for i in found if tasks[i] != task]
        if self.n_modules is None:
            return found
        if self.n_modules > len(found):
            raise UsageError(
                f"method.n_modules={self.n_modules}: {task} has {len(found)} LoRAs to draw from, give at most that many"
            )
        order = torch.randperm(len(found), generator=generator(trainer.seed, "lorahub modules", task)).tolist()
        return sorted(found[i] for i in order[: self.n_modules])

    def search(self, hub: LoRAAdapter, trainer: Trainer, task: str, sources: Sequence[int]) -> None:
        """Find the weights of the LoRAs ``sources`` for one task. Raises: as ``run_trials``."""
        stage = f"search-{task}"
        examples = [] if trainer.done(stage) or not sources else trainer.examples(task, self.shots, stage)
        if not examples:
            return
        row = cast("HubGate", hub.modules["hub"]).weights[hub.tasks.index(task)]

        def loss(weights: Weights) -> float:
            write_weights(row, sources, weights)
            return trainer.loss(examples) + self.l1 * float(abs(weights).mean())

        seed = method_seed(trainer.seed, "lorahub", task) % 2**32
        write_weights(row, sources, self.run_trials(len(sources), loss, trainer, stage, seed))
        trainer.finish(stage)

    def run_trials(self, n: int, loss: Callable[[Weights], float], trainer: Trainer, stage: str, seed: int) -> Weights:
        """The best n weights after all trials. On resume, the saved trials are replayed into a new optimiser.

        Raises: HarnessError if it proposes other weights than the saved ones (another version of nevergrad).
        """
        trials: list[list[Any]] = trainer.recall(stage) or []
        optimiser = self.optimiser(n, seed)
        try:
            for step in range(self.steps):
                candidate = optimiser.ask()
                if step == len(trials):
                    trials.append([[float(w) for w in candidate.value], loss(candidate.value)])
                    if len(trials) in (self.steps, *range(0, self.steps, CHECKPOINT_EVERY)):
                        trainer.remember(stage, trials)
                elif abs(candidate.value - trials[step][0]).max() > 1e-9:
                    raise HarnessError(
                        f"{stage} cannot be resumed: nevergrad proposes other weights at trial {step + 1} than before. "
                        "Install the version that started the run, or delete the run's directory and run it again"
                    )
                optimiser.tell(candidate, trials[step][1])
            best: Weights = optimiser.provide_recommendation().value
            return best
        finally:
            # NGOpt may choose an optimiser that runs in a thread, which ends with the object. If a traceback kept the
            # object alive, the thread would keep the process from exiting.
            del optimiser

    def optimiser(self, n: int, seed: int) -> Any:
        """NGOpt over n weights between -bound and bound, with 0 as the first candidate."""
        import nevergrad as ng
        import numpy as np

        space = ng.p.Array(init=np.zeros(n), lower=-self.bound, upper=self.bound)
        space.random_state = np.random.RandomState(seed)
        return ng.optimizers.NGOpt(parametrization=space, budget=self.steps)


def write_weights(row: Tensor, sources: Sequence[int], values: Weights) -> None:
    """Write the weights of the LoRAs in the mixture into a task's row; the others get weight 0."""
    row.zero_()
    row[list(sources)] = torch.as_tensor(values, dtype=row.dtype, device=row.device)
