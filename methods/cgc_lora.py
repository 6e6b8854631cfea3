"""CGC-LoRA (arXiv 2402.01684): common experts, a task's own experts, and a gate that sees the task alone.

The paper's text names the parts; what it leaves open is a field here.
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
    Site,
    TaskEmbedding,
    TaskGate,
    UniformScores,
    gate_weights,
    one_of,
)


@dataclass(frozen=True, kw_only=True)
class CGCLoRA(LoRAMethod):
    """h = W0 x + alpha / expert_rank [sum_i gC_ti BC_i AC_i x + sum_j gS_tj BS_tj AS_tj x].

    n_common, n_specific: experts of all tasks, and of each task alone. expert_rank: of each expert.
    gate: weights from a task "embedding" by linear maps without bias; from free "logits" per task; or "uniform".
    gate_scope: a gate for each "linear" layer, each "block", or one for the "model"; the embedding is always one.
    gate_softmax: "joint" over common and own experts, the gate of CGC; "separate" over either part.
    gate_lr: factor on the learning rate of free logits.
    layout: "cgc"; "common" makes own experts common (as many as a task sees), "wide" all experts of all tasks.
    """

    version: ClassVar[int] = 1
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
    gate_lr: float = 1.0
    layout: str = "cgc"

    def __post_init__(self) -> None:
        one_of("method.gate", self.gate, ["embedding", "logits", "uniform"])
        one_of("method.gate_scope", self.gate_scope, ["linear", "block", "model"])
        one_of("method.gate_softmax", self.gate_softmax, ["joint", "separate"])
        one_of("method.layout", self.layout, ["cgc", "common", "wide"])
        if min(self.n_common, self.n_specific) < 0 or self.n_common + self.n_specific == 0:
            raise UsageError(f"n_common {self.n_common} and n_specific {self.n_specific}: a task needs an expert")

    def experts(self, n_tasks: int) -> tuple[int, int]:
        """How many experts are common, and how many are each task's own."""
        if self.layout == "cgc":
            return self.n_common, self.n_specific
        return self.n_common + self.n_specific * (n_tasks if self.layout == "wide" else 1), 0

    def ranks(self, n_tasks: int) -> Ranks:
        common, own = self.experts(n_tasks)
        return Ranks(
            stored=(common + n_tasks * own) * self.expert_rank,
            active=(common + own) * self.expert_rank,
        )

    def layer(self, site: Site) -> AdaptedLinear:
        common, own = self.experts(len(site.tasks))
        names = [*range(common), *(f"{task}.{j}" for task in site.tasks for j in range(own))]
        scope = site.scope(self.gate_scope)
        gate = site.shared(f"{scope}.gate".lstrip("."), lambda: self.make_gate(site, scope, common, own))
        return GatedLinear(
            site,
            site.experts(names, self.expert_rank),
            gate,
            rank=self.expert_rank,
            scale=self.alpha / self.expert_rank,
        )

    def make_gate(self, site: Site, scope: str, common: int, own: int) -> TaskGate:
        """The gate of one scope over a task's ``common + own`` experts."""
        n_tasks, seen = len(site.tasks), common + own
        scores: nn.Module
        if self.gate == "embedding":
            embedding = site.shared("embedding", lambda: TaskEmbedding(site.tasks, self.embedding_size, site.seed))
            names = [f"{scope}.{part}{i}" for part, n in (("common", common), ("own", own)) for i in range(n)]
            scores = EmbeddingScores(embedding, names, site.seed)
        elif self.gate == "logits":
            scores = FreeScores(n_tasks, seen)
        else:
            scores = UniformScores(n_tasks, seen)
        return TaskGate(scores, n_tasks, common, own, separate=self.gate_softmax == "separate")

    def lr_factor(self, parameter: str) -> float:
        return self.gate_lr if parameter.endswith(".logits") else 1.0

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """One stage, all tasks mixed; then the gate's weights are kept for reports."""
        trainer.train("all")
        trainer.artefact("gates", gate_weights(cast("LoRAAdapter", adapter)), ArtefactKind.GATES)
