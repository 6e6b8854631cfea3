"""Arrow (arXiv 2405.11157): LoRAs trained alone, and a router without parameters of its own for every token.

"Towards Modular LLMs by Building and Reusing a Library of LoRAs", 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from harness.errors import NotFoldable, UsageError
from harness.method import Adapter, ArtefactKind, LoRAFactors, Ranks, Trainer, Trait
from methods.base import AdaptedLinear, LoRAAdapter, TargetModule, train_alone
from methods.expert_folders import ExpertFolders
from methods.layers.linear import output_sum
from methods.layers.post_hoc import PostHocLinear
from methods.layers.routing import Cache


@torch.no_grad()
def top_right_singular_vectors(a: Tensor, b: Tensor) -> Tensor:
    """The direction in which each update B A stretches its input most, exact up to its sign; zero if B A is zero.

    With the QR decompositions A^T = Q_A R_A and B = Q_B R_B, the singular vectors of B A are those of the small matrix
    R_B R_A^T, turned back by Q_A.

    Args:
        a: (E, r, d_in). b: (E, d_out, r).

    Returns: (E, d_in), of length 1 or 0.
    """
    q, r_a = torch.linalg.qr(a.transpose(1, 2))
    _, r_b = torch.linalg.qr(b)
    _, values, vectors = torch.linalg.svd(r_b @ r_a.transpose(1, 2), full_matrices=False)
    first = (q @ vectors[:, 0, :, None]).squeeze(-1)
    return torch.where(values[:, :1] > 0, first, torch.zeros_like(first))


class ArrowLinear(PostHocLinear):
    """LoRAs weighted for each token by how far the input lies in the direction that each LoRA stretches most."""

    def __init__(
        self,
        target: TargetModule,
        *,
        expert_names: Sequence[str],
        rank: int,
        scale: float,
        top_k: int | None,
        temperature: float,
    ) -> None:
        super().__init__(target, expert_names=expert_names, rank=rank, scale=scale)
        self.top_k, self.temperature = top_k, temperature
        self.cache = Cache()

    def directions(self) -> Tensor:
        """v of every LoRA, (E, d_in), computed again only if a LoRA has changed."""
        return self.cache.get("directions", [*self.a, *self.b], self._compute_directions)

    def _compute_directions(self) -> Tensor:
        return top_right_singular_vectors(torch.stack(list(self.a)), torch.stack(list(self.b)))

    def token_weights(self, x: Tensor) -> Tensor:
        """The weight of each LoRA, (M, n, E), for x (M, n, d_in). A LoRA that changes nothing gets weight 0."""
        directions = self.directions()
        scores = linear(x.to(directions.dtype), directions).abs() / self.temperature
        # A finite value, so that the weights are numbers even where no LoRA has been trained.
        scores = scores.masked_fill(~directions.any(-1), torch.finfo(scores.dtype).min)
        best = scores.topk(min(self.top_k or len(directions), len(directions)), -1)
        return torch.full_like(scores, -torch.inf).scatter(-1, best.indices, best.values).softmax(-1)

    def together(self, out: Tensor, x: Tensor) -> Tensor:
        a, b = (factors.to(x.dtype) for factors in self._stacked(range(len(self.a))))
        weights = self.token_weights(x).flatten(0, 1)
        # Every token is a sequence of its own here, since it has weights of its own.
        tokens = x.reshape(-1, 1, x.shape[-1])
        return output_sum(out, tokens, a, b, weights, self.scale)

    def fold(self, task: int) -> LoRAFactors:
        raise NotFoldable("the weights of arrow depend on the token: it has no fold and cannot be exported")


@dataclass(frozen=True, kw_only=True)
class Arrow(ExpertFolders):
    """h = W0 x + s sum_k c_k B_k A_k x, with c = softmax of the top_k scores |v_k^T x| / temperature, others 0.

    v_k is the top right singular vector of B_k A_k. The LoRAs are those of ``lora_single``, or those of ``experts``;
    nothing else is trained, and no labels are used. x is not normalised, as in the released code, so the scores grow
    with its length.

    PEFT estimates v_k by 15 steps of a power iteration from a random vector. Here it is exact, so that there is nothing
    random and no error where the two largest singular values are close. A LoRA without an update (of a task without
    training examples) takes no part.

    top_k: the number of LoRAs for a token, by default as in PEFT; None: all, as in the authors' library.
    temperature: of the softmax.
    """

    version: ClassVar[int] = 1
    traits: ClassVar[frozenset[Trait]] = frozenset()
    summary: ClassVar[str] = "LoRAs trained alone, weighted for each token by the directions that they stretch"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {"top_1": {"top_k": 1}, "all": {"top_k": None}}
    inference_fields: ClassVar[frozenset[str]] = frozenset({"top_k", "temperature"})

    top_k: int | None = 3
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"method.top_k={self.top_k}: use 1 or more LoRAs for a token, or none for all")
        if not self.temperature > 0:
            raise UsageError(f"method.temperature={self.temperature} must be above 0")

    def layer(self, target: TargetModule) -> AdaptedLinear:
        return ArrowLinear(
            target,
            expert_names=self.expert_names(target.tasks),
            rank=self.expert_rank(),
            scale=self.expert_scale(),
            top_k=self.top_k,
            temperature=self.temperature,
        )

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """Train each LoRA alone, or reuse it, unless they are read from folders; the router follows from them."""
        if self.experts:
            trainer.artefact("experts", list(self.experts), ArtefactKind.OTHER)
            return
        own = cast("LoRAAdapter", adapter)
        with own.without_mixture():
            train_alone(own, trainer, tasks)

    def ranks(self, n_tasks: int) -> Ranks:
        """The active rank is that of the LoRAs of one token."""
        n, rank = len(self.experts) or n_tasks, self.expert_rank()
        return Ranks(stored=n * rank, active=min(self.top_k or n, n) * rank)
