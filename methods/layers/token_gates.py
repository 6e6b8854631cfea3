"""Token gates: weights of experts that each layer computes from the hidden state of each token.

Prompts need no task label, and the methods do not fold, since a plain LoRA has no weights that change from token to
token.

Shapes: V input vectors (tokens) of a forward, E experts of rank r, S sequences of a training step, L layers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness.errors import NotFoldable, UsageError
from harness.method import LoRAFactors
from methods.layers.adapter import LoRAAdapter, Parts
from methods.layers.casting import cast_experts
from methods.layers.linear import AdaptedLinear, weighted_sum
from methods.layers.target import ExpertFactors, TargetModule


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenWeights:
    """What a gate computes for each input vector, all (..., E) and in float32 or better.

    g: the weights of the experts. p: the scores that the load balance averages.
    selected: 1 for the experts in use, otherwise 0; None: all experts are in use.
    """

    g: Tensor
    p: Tensor
    selected: Tensor | None = None


class TokenGate(nn.Module):
    """All experts: g = p = softmax(W x), without bias. W (E, d_in) is initially uniform in +-1 / sqrt(d_in).

    That is kaiming-uniform with a = sqrt(5). The row of an expert depends only on (seed, module name, expert).
    """

    def __init__(self, target: TargetModule, n_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([_row(target, f"router.{k}") for k in range(n_experts)]))

    def probabilities(self, x: Tensor) -> Tensor:
        """softmax(W x), (..., E); the softmax of half-precision scores is computed in float32."""
        scores = linear(x, self.weight.to(x.dtype))
        return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))

    def forward(self, x: Tensor) -> TokenWeights:
        p = self.probabilities(x)
        return TokenWeights(g=p, p=p)


class TopKGate(TokenGate):
    """The k likeliest experts: g_e = p_e / (sum of the k largest p) for them, and 0 for all others."""

    def __init__(self, target: TargetModule, n_experts: int, top_k: int) -> None:
        super().__init__(target, n_experts)
        self.top_k = min(top_k, n_experts)

    def forward(self, x: Tensor) -> TokenWeights:
        p = self.probabilities(x)
        selected = torch.zeros_like(p).scatter(-1, p.detach().topk(self.top_k, -1).indices, 1.0)
        kept = p * selected
        return TokenWeights(g=kept / kept.sum(-1, keepdim=True), p=p, selected=selected)


class ThresholdGate(TokenGate):
    """The experts above a threshold: g_e = (p_e - tau)+ / sum_e (p_e - tau)+, all 0 if none is above it.

    tau = max_threshold sigmoid(w x + b) depends on the token. Initially w and b are uniform in +-1 / sqrt(d_in), as
    those of a linear layer. The load balance averages p - tau, as in AdaMoLE's released code.
    """

    def __init__(self, target: TargetModule, n_experts: int, max_threshold: float) -> None:
        super().__init__(target, n_experts)
        self.max_threshold = max_threshold
        self.threshold_weight = nn.Parameter(_row(target, "threshold"))
        self.threshold_bias = nn.Parameter(_row(target, "threshold.bias")[0, :1].clone())

    def forward(self, x: Tensor) -> TokenWeights:
        p = self.probabilities(x)
        scores = linear(x, self.threshold_weight.to(x.dtype), self.threshold_bias.to(x.dtype))
        above = p - self.max_threshold * scores.to(p.dtype).sigmoid()
        kept = above.relu()
        total = kept.sum(-1, keepdim=True)
        selected = (above.detach() >= 0).to(p.dtype)
        return TokenWeights(g=kept / torch.where(total == 0, 1.0, total), p=above, selected=selected)


def _row(target: TargetModule, name: str) -> Tensor:
    """(1, d_in), uniform in +-1 / sqrt(d_in)."""
    d_in = target.linear.in_features
    return torch.empty(1, d_in).uniform_(-(d_in**-0.5), d_in**-0.5, generator=target.generator(name))


def require_weight(key: str, value: float) -> None:
    """Raises UsageError if the value of a key is negative or not finite."""
    if not 0 <= value < math.inf:
        raise UsageError(f"{key}={value}: use 0 or more")


def stored_rank(rows: float, columns: float) -> int:
    """The rank of a LoRA with as many parameters as ``rows`` x d_in + d_out x ``columns`` has where d_in = d_out.

    Rows are those of A and of the routers.
    """
    return math.ceil((rows + columns) / 2)


class TokenGatedLinear(AdaptedLinear):
    """E experts weighted by a token gate: ``out + scale sum_k g_k(x) B_k A_k drop(x)``, or with one A for all experts.

    The gate reads x before dropout. Experts of weight 0 are computed too: at these ranks gathering costs more.

    Args:
        factors: A (E r, d_in), or (r, d_in) for one A, and B (d_out, E r).
        gate: a module that returns the ``TokenWeights`` of x.
        balanced: keep what the gate computed in a training step, for the load balance.
    """

    drops_input = False

    def __init__(
        self, target: TargetModule, factors: ExpertFactors, gate: nn.Module, *, scale: float, balanced: bool
    ) -> None:
        super().__init__(target)
        self.a, self.b = factors.a, factors.b
        self.gate = gate
        self.scale, self.balanced = scale, balanced
        self.weights_of_step: TokenWeights | None = None

    def factors(self) -> Mapping[str, nn.Parameter]:
        return {"A": self.a, "B": self.b}

    def delta(self, out: Tensor, x: Tensor) -> Tensor:
        weights: TokenWeights = self.gate(x)
        if self.balanced and self.training and torch.is_grad_enabled():
            # Under gradient checkpointing this runs again in backward, when the load balance is already computed.
            self.weights_of_step = weights
        rank = self.b.shape[1] // weights.g.shape[-1]
        cast = cast_experts(self.a, self.b, rank, x, self.route)
        return weighted_sum(out, self.drop(x), cast, weights.g, "output", self.scale)

    def fold(self, task: int) -> LoRAFactors:
        raise NotFoldable(
            f"the token gate of {self.name} weighs the experts of each token by its hidden state, so no plain LoRA "
            "equals them: predict with `harness predict` instead, or choose a method that folds"
        )


@runtime_checkable
class KeepsWeights(Protocol):
    """A layer or a gate that keeps what it computed in a training step; None between steps, and without a balance."""

    weights_of_step: TokenWeights | None


@dataclass(frozen=True, kw_only=True)
class Balance:
    """A load balance: weight times the sum over layers of a mean over sequences.

    kind: of one layer and one sequence, with f_e the share of its tokens that use expert e and P_e the mean of p_e over
    its tokens,

    - "switch": E sum_e f_e P_e (Switch Transformers, arXiv 2101.03961);
    - "variation": Var_e(P_e) / (Mean_e(P_e)^2 + 1e-10), the squared coefficient of variation, with the unbiased
      variance (LoRAMoE, arXiv 2312.09979).
    """

    weight: float
    kind: str

    def of(self, p: Tensor, f: Tensor) -> Tensor:
        """Summed over layers and sequences, without the weight; p and f have the shape (L, S, E)."""
        if self.kind == "switch":
            return p.shape[-1] * (f * p).sum()
        if p.shape[-1] == 1:
            return p.new_zeros(())  # One expert has no variance.
        return (p.var(-1) / (p.mean(-1).square() + 1e-10)).sum()


class TokenGatedAdapter(LoRAAdapter):
    """Layers with token gates, and their load balance as the penalty of a training step.

    The balance is a mean over the sequences of the step, each averaged over its own tokens without padding. It is thus
    the same however the step is divided into micro-batches, packed sequences and processes, while that of the tokens of
    a micro-batch, as in released code, is not. For micro-batches of one sequence both are equal.
    """

    def __init__(self, parts: Parts, balance: Balance) -> None:
        super().__init__(parts)
        self.balance = balance
        self._masks: Sequence[Tensor] = ()

    @contextmanager
    def route(self, labels: Tensor, examples: Tensor | None = None) -> Iterator[None]:
        with super().route(labels, examples):
            try:
                yield
            finally:
                self._masks = ()
                for keeper in self._keepers():
                    keeper.weights_of_step = None

    def count_tokens(self, masks: Sequence[Tensor]) -> None:
        self._masks = masks

    def penalty(self) -> Tensor:
        """The load balance, summed over sequences; without masks every vector counts. Layers are computed together."""
        groups: dict[tuple[int, int], list[TokenWeights]] = defaultdict(list)
        for keeper in self._keepers():
            weights = keeper.weights_of_step
            if weights is not None:
                n_experts = weights.p.shape[-1]
                groups[weights.p.numel() // n_experts, n_experts].append(weights)
        sums = [self._summed(n_vectors, weights) for (n_vectors, _), weights in groups.items()]
        return self.balance.weight * torch.stack(sums).sum() if sums else super().penalty()

    def _keepers(self) -> Iterator[KeepsWeights]:
        for module in (*self.layers.values(), *self.modules.values()):
            if isinstance(module, KeepsWeights):
                yield module

    def _summed(self, n_vectors: int, weights: Sequence[TokenWeights]) -> Tensor:
        """The balance of layers that read the same n_vectors vectors and have the same number of experts."""
        p = torch.stack([w.p.reshape(n_vectors, -1) for w in weights])
        shares = self._shares(n_vectors, p.dtype)
        f = [torch.ones_like(w.p) if w.selected is None else w.selected for w in weights]
        used = torch.stack([s.reshape(n_vectors, -1) for s in f])
        return self.balance.of(shares @ p, shares @ used)

    def _shares(self, n_vectors: int, dtype: torch.dtype) -> Tensor:
        """(S, V): 1 / n for the n vectors of each sequence, 0 for those of others and of padding.

        A product with it adds in a fixed order on every device, which ``index_add`` does not.
        """
        examples = self.current_route.examples
        assert examples is not None
        owner = examples[:, None].expand(-1, n_vectors // len(examples)).reshape(-1)
        own = torch.arange(self.current_route.n_examples, device=owner.device)[:, None] == owner
        if self._masks:
            mask = next((m for m in self._masks if m.numel() == n_vectors), None)
            if mask is None:
                raise RuntimeError(
                    f"a layer reads {n_vectors} vectors, and the batch has {[m.numel() for m in self._masks]} tokens"
                )
            own = own & mask.reshape(-1).to(owner.device)
        return own.to(dtype) / own.sum(1, keepdim=True).clamp(min=1)
