"""MoE-LoRA (MOELoRA, arXiv 2310.18339): experts of equal rank, all active, weighed by a gate that sees the task id."""

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

DEVIATION = 0.01  # of A at the start


@dataclass(frozen=True, kw_only=True)
class MoELoRA(LoRAMethod):
    """h = W0 x + s sum_k g_tk B_k A_k x with g_t = softmax(G e_t); A_k ~ N(0, 0.01^2), B_k = 0.

    rank: of all experts together, a multiple of n_experts.
    scale: "release" is s = alpha / rank, as published; "lora" is s = alpha / (rank of one expert), with which a uniform
        gate is as strong as a LoRA of the same rank.
    gate_scope: one gate for the whole "model", as published, or one for each "layer".
    gate: weights from a task "embedding", or "uniform".
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.ROUTED, Trait.FOLDS})
    summary: ClassVar[str] = "experts behind one gate on the task"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_gate": {"gate": "uniform"},
        "layer_gate": {"gate_scope": "layer"},
        "lora_scale": {"scale": "lora"},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "method.rank": 16,
            "method.n_experts": 8,
            "method.alpha": 32.0,
            "method.dropout": 0.1,
            "method.embedding_size": 64,
            "method.scale": "release",
            "method.gate_scope": "model",
            "train.lr": 2e-4,
            "train.warmup": 0.0,
            "train.batch_size": 64,
            "train.steps": 8000,
            "train.max_length": 1220,
        }
    }

    rank: int = 16
    n_experts: int = 8
    embedding_size: int = 64
    scale: str = "release"
    gate_scope: str = "model"
    gate: str = "embedding"

    def __post_init__(self) -> None:
        one_of("method.scale", self.scale, ["release", "lora"])
        one_of("method.gate_scope", self.gate_scope, ["model", "layer"])
        one_of("method.gate", self.gate, ["embedding", "uniform"])
        if self.n_experts < 1 or self.rank < 1 or self.rank % self.n_experts:
            raise UsageError(f"method.rank {self.rank} is no multiple of method.n_experts {self.n_experts}")

    def ranks(self, n_tasks: int) -> Ranks:
        return Ranks(stored=self.rank, active=self.rank)

    def rank_step(self, n_tasks: int) -> int:
        return self.n_experts

    def layer(self, site: Site) -> AdaptedLinear:
        expert_rank = self.rank // self.n_experts
        scope = site.scope("model" if self.gate_scope == "model" else "linear")
        gate = site.shared(f"{scope}.gate".lstrip("."), lambda: self.make_gate(site, scope))
        return GatedLinear(
            site,
            site.normal_experts(range(self.n_experts), expert_rank, DEVIATION),
            gate,
            rank=expert_rank,
            scale=self.alpha / (self.rank if self.scale == "release" else expert_rank),
        )

    def make_gate(self, site: Site, scope: str) -> TaskGate:
        """The gate of one scope over all experts."""
        n_tasks = len(site.tasks)
        scores: nn.Module
        if self.gate == "embedding":
            embedding = site.shared("embedding", lambda: TaskEmbedding(site.tasks, self.embedding_size, site.seed))
            scores = EmbeddingScores(embedding, [f"{scope}.{k}" for k in range(self.n_experts)], site.seed)
        else:
            scores = UniformScores(n_tasks, self.n_experts)
        return TaskGate(scores, n_tasks, self.n_experts, 0)

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """One stage, all tasks mixed; then the gate's weights are kept for reports."""
        trainer.train("all")
        trainer.artefact("gates", gate_weights(cast("LoRAAdapter", adapter)), ArtefactKind.GATES)
