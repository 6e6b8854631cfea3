"""Align-LoRA (arXiv 2508.05078): one LoRA for all tasks, with a loss that aligns the tasks' features A x.

The released code divides each batch by position, which mixes the tasks, and counts padding as tokens. This is the
equation of the paper: statistics of each task's own tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from harness.errors import ModelError, UsageError
from harness.method import Adapter, ArtefactKind, Ranks, Trainer, Trait
from methods.base import AdaptedLinear, LoRAAdapter, LoRAMethod, Parts, TargetModule, TaskLinear, require_choice
from methods.layers.alignment import Alignment
from methods.layers.casting import cast_one
from methods.layers.linear import add_product


class AlignedLinear(TaskLinear):
    """One LoRA for all tasks, which keeps the features A x (M, n, r) of a training step in ``features``."""

    features: Tensor | None = None

    def delta(self, out: Tensor, x: Tensor) -> Tensor:
        cast = cast_one(self.a[0], self.b[0], x, self.route)
        z = linear(x, cast.a)
        if self.training and torch.is_grad_enabled():
            # Under gradient checkpointing this runs again in backward, when the alignment is already computed.
            self.features = z[..., : self.rank]
        return add_product(out, z, cast.b, self.scale)


class AlignAdapter(LoRAAdapter):
    """One LoRA for all tasks, and the alignment of the tasks in each micro-batch as its penalty."""

    def __init__(self, parts: Parts, method: AlignLoRA) -> None:
        config = getattr(parts.model, "config", None)
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"align_lora compares the tokens of one sequence of layers, and {type(parts.model).__name__} has an "
                "encoder and a decoder: use a decoder-only --model, or method lora_all"
            )
        super().__init__(parts)
        self.weight = method.weight
        self.alignment = Alignment(method.divergence, method.mmd_tokens if method.divergence == "mmd" else None)
        self.n_sequences = 0
        self._aligned = {n: layer for n, layer in self.layers.items() if isinstance(layer, AlignedLinear)}

    @contextmanager
    def route(self, labels: Tensor, examples: Tensor | None = None) -> Iterator[None]:
        with super().route(labels, examples):
            self.alignment.begin(labels)
            self.n_sequences = len(labels) if examples is None else torch.unique(examples).numel()
            try:
                yield
            finally:
                self.alignment.end()
                for layer in self._aligned.values():
                    layer.features = None

    def count_tokens(self, masks: Sequence[Tensor]) -> None:
        """As ``CountsTokens.count_tokens``: padding takes no part in the statistics."""
        (self.alignment.real,) = masks

    def penalty(self) -> Tensor:
        """The weighted alignment loss of the micro-batch, times the number of its sequences.

        The loss of a step is then the mean over its sequences, each with the alignment loss of its micro-batch.
        """
        for name, layer in self._aligned.items():
            if layer.features is not None:
                self.alignment.record(name, layer.features)
        loss = self.alignment.loss()
        return super().penalty() if loss is None else self.weight * self.n_sequences * loss


@dataclass(frozen=True, kw_only=True)
class AlignLoRA(LoRAMethod):
    """h = W0 x + alpha / rank B A x with L = L_LM + weight mean over layers and pairs of tasks of D(i, j).

    D compares the features A x of two tasks, over the real tokens of a micro-batch; tasks with fewer than two of them
    take no part. It depends on which examples share a micro-batch (``train.micro_tokens``), and not on their order or
    packing. In prediction this is ``lora_all``.

    weight: of the alignment loss; with 0 training is that of ``lora_all``.
    divergence: "kl", the symmetric Kullback-Leibler divergence of Gaussians with diagonal covariance; or "mmd", the
        squared maximum mean discrepancy with 19 Gaussian kernels.
    mmd_tokens: the largest number of tokens of each task in "mmd", evenly spaced among its tokens.
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.FOLDS})
    summary: ClassVar[str] = "one LoRA for all tasks, with a loss that aligns the tasks' features"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mmd": {"divergence": "mmd"}}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "method.rank": 8,
            "method.alpha": 32.0,
            "method.dropout": 0.1,
            "method.weight": 0.2,
            "method.targets": "gate_proj,up_proj,down_proj",
            "train.lr": 2e-4,
            "train.batch_size": 50,
        }
    }

    rank: int = 16
    weight: float = 0.2
    divergence: str = "kl"
    mmd_tokens: int = 32

    def __post_init__(self) -> None:
        require_choice("method.divergence", self.divergence, ["kl", "mmd"])
        if self.weight < 0:
            raise UsageError(f"method.weight={self.weight}: give 0 or more")
        if self.mmd_tokens < 2:
            raise UsageError(f"method.mmd_tokens={self.mmd_tokens}: a distribution needs at least 2 tokens")

    def ranks(self, n_tasks: int) -> Ranks:
        return Ranks(stored=self.rank, active=self.rank)

    def layer(self, target: TargetModule) -> AdaptedLinear:
        kind = AlignedLinear if self.weight else TaskLinear
        return kind(target, expert_names=None, rank=self.rank, scale=self.alpha / self.rank)

    def adapter(self, parts: Parts) -> LoRAAdapter:
        return AlignAdapter(parts, self) if self.weight else LoRAAdapter(parts)

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """One stage with all tasks mixed; then what the alignment loss was computed from is saved for reports."""
        finished = trainer.done("all")
        trainer.train("all")
        if finished or not isinstance(adapter, AlignAdapter):
            return
        counted = adapter.alignment
        n = max(1, counted.n_micro_batches)
        trainer.artefact(
            "alignment",
            {
                "micro_batches": counted.n_micro_batches,
                "tasks_per_micro_batch": round(counted.n_tasks / n, 6),
                "mean_loss": round(float(counted.total) / n, 6),
            },
            ArtefactKind.OTHER,
        )
