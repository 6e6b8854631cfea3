"""CGC-LoRA (arXiv 2402.01684): common experts, task-specific experts, and a gate on the task id.

The paper describes these parts; each choice that it leaves open is a field here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import nn

from harness.errors import UsageError
from harness.method import Adapter, ArtefactKind, Ranks, Trainer, Trait
from methods.base import (
    AdaptedLinear,
    EmbeddingScores,
    FreeScores,
    GatedLinear,
    LoRAAdapter,
    LoRAMethod,
    TargetModule,
    TaskEmbedding,
    TaskGate,
    UniformScores,
    gate_weights,
    require_choice,
)


@dataclass(frozen=True, kw_only=True)
class CGCLoRA(LoRAMethod):
    """h = W0 x + alpha / expert_rank [sum_i gC_ti BC_i AC_i x + sum_j gS_tj BS_tj AS_tj x].

    For task t, with e_t a row of the task embedding: [gC_t ; gS_t] = softmax([WC e_t ; WS e_t]).

    n_common, n_specific: the number of experts shared by all tasks, and of experts of each task alone.
    expert_rank: the rank of each expert.
    embedding_size: the size of e_t.
    gate: weights from a task "embedding" by linear maps without bias; from free "logits" of each task; or "uniform".
    gate_scope: a gate for each "linear" layer, for each "block", or for the "model"; the embedding is always shared.
    gate_softmax: "joint" over common and specific experts, as in the original CGC; "separate" over each part.
    gate_lr: the factor on the learning rate of free logits, which hardly move at that of the experts.
    layout: "cgc"; "common" makes specific experts common (as many as one task uses), "wide" those of all tasks.
    """

    version: ClassVar[int] = 2
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.ROUTED, Trait.FOLDS})
    summary: ClassVar[str] = "common and task-specific experts behind a gate on the task"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_cgc": {"layout": "common"},
        "no_cgc_wide": {"layout": "wide"},
        "no_gate": {"gate": "uniform"},
        "no_common": {"n_common": 0},
        "no_specific": {"n_specific": 0},
    }
    rank_field: ClassVar[str] = "expert_rank"

    n_common: int = 7
    n_specific: int = 1
    expert_rank: int = 2
    embedding_size: int = 64
    gate: str = "embedding"
    gate_scope: str = "linear"
    gate_softmax: str = "joint"
    gate_lr: float = 50.0
    layout: str = "cgc"

    def __post_init__(self) -> None:
        require_choice("method.gate", self.gate, ["embedding", "logits", "uniform"])
        require_choice("method.gate_scope", self.gate_scope, ["linear", "block", "model"])
        require_choice("method.gate_softmax", self.gate_softmax, ["joint", "separate"])
        require_choice("method.layout", self.layout, ["cgc", "common", "wide"])
        if min(self.n_common, self.n_specific) < 0 or self.n_common + self.n_specific == 0:
            raise UsageError(
                f"method.n_common={self.n_common}, method.n_specific={self.n_specific}: a task needs at least 1 expert"
            )

    def experts(self, n_tasks: int) -> tuple[int, int]:
        """The number of common experts, and of specific experts of each task."""
        if self.layout == "cgc":
            return self.n_common, self.n_specific
        return self.n_common + self.n_specific * (n_tasks if self.layout == "wide" else 1), 0

    def ranks(self, n_tasks: int) -> Ranks:
        common, own = self.experts(n_tasks)
        return Ranks(
            stored=(common + n_tasks * own) * self.expert_rank,
            active=(common + own) * self.expert_rank,
        )

    def layer(self, target: TargetModule) -> AdaptedLinear:
        common, own = self.experts(len(target.tasks))
        names = [*range(common), *(f"{task}.{j}" for task in target.tasks for j in range(own))]
        scope = target.scope(self.gate_scope)
        gate = target.shared(f"{scope}.gate".lstrip("."), lambda: self.make_gate(target, scope, common, own))
        return GatedLinear(
            target,
            target.experts(names, self.expert_rank),
            gate,
            rank=self.expert_rank,
            scale=self.alpha / self.expert_rank,
        )

    def make_gate(self, target: TargetModule, scope: str, common: int, own: int) -> TaskGate:
        """The gate of one scope over the ``common + own`` experts of a task."""
        n_tasks, n_experts = len(target.tasks), common + own
        scores: nn.Module
        if self.gate == "embedding":
            embedding = target.shared(
                "embedding", lambda: TaskEmbedding(target.tasks, self.embedding_size, target.seed)
            )
            names = [f"{scope}.{part}{i}" for part, n in (("common", common), ("own", own)) for i in range(n)]
            scores = EmbeddingScores(embedding, names, target.seed)
        elif self.gate == "logits":
            scores = FreeScores(n_tasks, n_experts)
        else:
            scores = UniformScores(n_tasks, n_experts)
        return TaskGate(scores, n_tasks, common, own, separate=self.gate_softmax == "separate")

    def lr_factor(self, parameter: str) -> float:
        return self.gate_lr if parameter.endswith(".logits") else 1.0

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """One stage with all tasks mixed; then the weights of the gates are saved for reports."""
        trainer.train("all")
        trainer.artefact("gates", gate_weights(cast("LoRAAdapter", adapter)), ArtefactKind.GATES)
