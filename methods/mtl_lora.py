"""MTL-LoRA (arXiv 2410.09437, after the released code): one A, a map of each task, and heads B behind a task gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import nn

from harness.errors import UsageError
from harness.method import Adapter, ArtefactKind, Ranks, Trainer, Trait
from methods.base import (
    AdaptedLinear,
    LoRAAdapter,
    LoRAMethod,
    TargetModule,
    TaskGate,
    UniformScores,
    gate_weights,
    require_choice,
)
from methods.layers.heads import HeadScores, HeadsLinear, TaskMap


@dataclass(frozen=True, kw_only=True)
class MTLLoRA(LoRAMethod):
    """h = W0 x + alpha / rank (sum_i p_ti B_i) Lambda_t A x with p_t = softmax(w_t / tau).

    Initially Lambda_t is the identity, w_t uniform in +-1 / sqrt(n_heads) and B_i zero. A and B_i are shared by all
    tasks; Lambda_t and w_t belong to task t.

    rank: of A, of each head, and of a task's fold. n_heads: the number of factors B_i.
    tau: the temperature of the gate. A step of AdamW moves w_t / tau by lr / tau; the rate is that of the factors, as
        in the release.
    task_map: Lambda_t is a "full" matrix, its "diagonal", or the fixed "identity".
    gate: weights of heads from free "logits" of each task, or "uniform".
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.ROUTED, Trait.FOLDS})
    summary: ClassVar[str] = "one A, a map of each task after it, and heads B behind a gate on the task"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_lambda": {"task_map": "identity"},
        "diagonal": {"task_map": "diagonal"},
        "no_gate": {"gate": "uniform"},
        "one_head": {"n_heads": 1},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "method.rank": 8,
            "method.alpha": 16.0,
            "method.n_heads": 3,
            "method.tau": 0.1,
            "method.targets": "q_proj,k_proj,v_proj,o_proj",
            "train.lr": 3e-4,
            "train.epochs": 3.0,
            "train.batch_size": 8,
            "train.max_length": 256,
        }
    }

    rank: int = 16
    n_heads: int = 3
    tau: float = 0.1
    task_map: str = "full"
    gate: str = "logits"

    def __post_init__(self) -> None:
        require_choice("method.task_map", self.task_map, ["full", "diagonal", "identity"])
        require_choice("method.gate", self.gate, ["logits", "uniform"])
        if self.n_heads < 1:
            raise UsageError(f"method.n_heads={self.n_heads}: give 1 or more")
        if self.tau <= 0:
            raise UsageError(f"method.tau={self.tau}: a temperature is greater than 0, such as 0.1")

    def ranks(self, n_tasks: int) -> Ranks:
        """The stored rank is that of the stacked heads, the larger factor: A has only ``rank`` rows."""
        return Ranks(stored=self.n_heads * self.rank, active=self.rank)

    def layer(self, target: TargetModule) -> AdaptedLinear:
        n_tasks, task_map = len(target.tasks), None
        if self.task_map != "identity":
            diagonal = self.task_map == "diagonal"
            task_map = target.shared(f"{target.name}.lambda", lambda: TaskMap(n_tasks, self.rank, diagonal))
        gate = target.shared(f"{target.name}.gate", lambda: self.make_gate(target))
        return HeadsLinear(
            target, n_heads=self.n_heads, rank=self.rank, scale=self.alpha / self.rank, gate=gate, task_map=task_map
        )

    def make_gate(self, target: TargetModule) -> TaskGate:
        """The gate of one layer. A single head has the weight 1, without logits."""
        scores: nn.Module
        if self.gate == "uniform" or self.n_heads == 1:
            scores = UniformScores(len(target.tasks), self.n_heads)
        else:
            scores = HeadScores(target.tasks, self.n_heads, self.tau, target.seed, target.name)
        return TaskGate(scores, len(target.tasks), self.n_heads, 0)

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """One stage with all tasks mixed; then the weights of the heads are saved for reports.

        A task without training examples gets all heads with equal weights, since its initial weights are random.
        """
        own = cast("LoRAAdapter", adapter)
        untrained = [i for i, task in enumerate(tasks) if not trainer.examples(task, 1, "all")]
        for gate in own.modules.values():
            if isinstance(gate, TaskGate) and isinstance(gate.scores, HeadScores):
                gate.scores.reset(untrained)
        trainer.train("all")
        trainer.artefact("gates", gate_weights(own), ArtefactKind.GATES)
