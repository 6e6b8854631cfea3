"""MoE-LoRA (MOELoRA, arXiv 2310.18339, after the released code): experts, all active, and a gate on the task."""

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
    TargetModule,
    TaskEmbedding,
    TaskGate,
    UniformScores,
    gate_weights,
    require_choice,
)

DEVIATION = 0.01  # The standard deviation of the initial A, as in the released code.


@dataclass(frozen=True, kw_only=True)
class MoELoRA(LoRAMethod):
    """h = W0 x + s sum_k g_tk B_k A_k x with g_t = softmax(G e_t); initially A_k ~ N(0, 0.01^2), B_k = 0.

    rank: of all experts together, a multiple of n_experts.
    embedding_size: the size of the task embedding e_t.
    scale: "release" is s = alpha / rank, as published; "lora" is s = alpha / (rank of one expert). With the latter a
        uniform gate equals one LoRA of the same rank.
    gate_scope: one gate for the whole "model", as published, or one for each "layer".
    gate: weights from a task "embedding", or "uniform".
    """

    version: ClassVar[int] = 2
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
        require_choice("method.scale", self.scale, ["release", "lora"])
        require_choice("method.gate_scope", self.gate_scope, ["model", "layer"])
        require_choice("method.gate", self.gate, ["embedding", "uniform"])
        if self.n_experts < 1 or self.rank < 1 or self.rank % self.n_experts:
            raise UsageError(f"method.rank={self.rank} is not a multiple of method.n_experts={self.n_experts}")

    def ranks(self, n_tasks: int) -> Ranks:
        return Ranks(stored=self.rank, active=self.rank)

    def rank_step(self, n_tasks: int) -> int:
        return self.n_experts

    def layer(self, target: TargetModule) -> AdaptedLinear:
        expert_rank = self.rank // self.n_experts
        scope = target.scope("model" if self.gate_scope == "model" else "linear")
        gate = target.shared(f"{scope}.gate".lstrip("."), lambda: self.make_gate(target, scope))
        return GatedLinear(
            target,
            target.normal_experts(range(self.n_experts), expert_rank, DEVIATION),
            gate,
            rank=expert_rank,
            scale=self.alpha / (self.rank if self.scale == "release" else expert_rank),
        )

    def make_gate(self, target: TargetModule, scope: str) -> TaskGate:
        """The gate of one scope over all experts."""
        n_tasks = len(target.tasks)
        scores: nn.Module
        if self.gate == "embedding":
            embedding = target.shared(
                "embedding", lambda: TaskEmbedding(target.tasks, self.embedding_size, target.seed)
            )
            scores = EmbeddingScores(embedding, [f"{scope}.{k}" for k in range(self.n_experts)], target.seed)
        else:
            scores = UniformScores(n_tasks, self.n_experts)
        return TaskGate(scores, n_tasks, self.n_experts, 0)

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """One stage with all tasks mixed; then the weights of the gates are saved for reports."""
        trainer.train("all")
        trainer.artefact("gates", gate_weights(cast("LoRAAdapter", adapter)), ArtefactKind.GATES)
