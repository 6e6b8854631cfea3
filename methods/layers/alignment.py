"""Divergences between the features of tasks, from the tokens of one micro-batch.

Shapes: N tokens of a micro-batch, K of them chosen, P tasks among these, L layers, features z = A x (N, r).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.checkpoint import checkpoint

EPSILON = 1e-8  # Is added to variances, as in the released code.
# The bandwidths of the Gaussian kernels, as in the released code.
BANDWIDTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6)


@dataclass(frozen=True, kw_only=True)
class TokenGroups:
    """The chosen tokens of each task with at least two.

    index: (K,) positions among the N tokens, task after task. own: (K, P), 1 for the task of each token.
    """

    index: Tensor
    own: Tensor

    def to(self, z: Tensor) -> TokenGroups:
        """The same groups on the device of the features, in the dtype of statistics."""
        dtype = torch.float64 if z.dtype is torch.float64 else torch.float32
        return TokenGroups(index=self.index.to(z.device), own=self.own.to(z.device, dtype))

    def features(self, z: Tensor) -> Tensor:
        """The features of the chosen tokens, (K, r), in the dtype of statistics."""
        return z.reshape(-1, z.shape[-1])[self.index].to(self.own.dtype)

    def share(self) -> Tensor:
        """(K, P), 1 / (number of its tokens) for the task of each token."""
        return self.own / self.own.sum(0)


def token_groups(labels: Tensor, n: int, real: Tensor | None, limit: int | None) -> TokenGroups | None:
    """The real tokens of each task; None if fewer than two tasks have two of them.

    Args:
        labels: (M,) of sequences or tokens, on the CPU. n: the number of tokens of each label.
        real: BoolTensor of M n tokens in the same order, False for padding; None if nothing is padded.
        limit: the largest number of tokens of a task, evenly spaced among all of its tokens; None: all.
    """
    tasks = labels.reshape(-1).repeat_interleave(n)
    if real is not None:
        tasks = torch.where(real.reshape(-1), tasks, -1)
    chosen = []
    for task in torch.unique(labels).tolist():
        positions = (tasks == task).nonzero().flatten()
        if limit is not None and len(positions) > limit:
            positions = positions[torch.linspace(0, len(positions) - 1, limit).round().long()]
        if len(positions) >= 2:
            chosen.append(positions)
    if len(chosen) < 2:
        return None
    counts = torch.tensor([len(positions) for positions in chosen])
    own = one_hot(torch.arange(len(chosen)).repeat_interleave(counts), len(chosen))
    return TokenGroups(index=torch.cat(chosen), own=own)


def moments(features: Tensor, groups: TokenGroups) -> Tensor:
    """Mean and unbiased variance of each task's features (K, r): (2, P, r)."""
    mean = groups.share().t() @ features
    squares = (features - groups.own @ mean).square()
    variance = groups.own.t() @ squares / (groups.own.sum(0) - 1)[:, None]
    return torch.stack([mean, variance])


def symmetric_kl(mean: Tensor, variance: Tensor) -> Tensor:
    """(KL(i || j) + KL(j || i)) / 2 of Gaussians with diagonal covariance, (..., P, r) to (..., P, P).

    The logarithms of the two directions cancel.
    """
    variance = variance + EPSILON
    here, there = variance[..., :, None, :], variance[..., None, :, :]
    squares = (mean[..., :, None, :] - mean[..., None, :, :]).square()
    return ((here + squares) / there + (there + squares) / here - 2).sum(-1) / 4


def squared_mmd(features: Tensor, share: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of each pair of tasks, (K, r) and (K, P) to (P, P), as a V-statistic.

    The kernel is the sum over the bandwidths h of exp(-|x - y|^2 / (2 h)).
    """
    distance = (features[:, None] - features[None]).square().sum(-1)
    kernel = torch.zeros_like(distance)
    for bandwidth in BANDWIDTHS:
        kernel = kernel + torch.exp(distance / (-2 * bandwidth))
    inner = share.t() @ kernel @ share
    return inner.diagonal()[:, None] + inner.diagonal()[None] - 2 * inner


def mean_over_pairs(divergences: Tensor) -> Tensor:
    """The mean of (..., P, P) over the pairs i < j, and over everything before them."""
    n = divergences.shape[-1]
    i, j = torch.triu_indices(n, n, offset=1, device=divergences.device)
    return divergences[..., i, j].mean()


class Alignment:
    """The features of the current route's tokens, by layer, and their divergence.

    A forward that is repeated for gradient checkpointing records a layer again, with equal values.

    Args:
        divergence: "kl" or "mmd". limit: see ``token_groups``.

    Attributes:
        n_micro_batches: the micro-batches so far. n_tasks: the sum of their tasks with at least two tokens, or of 0 if
            fewer than two tasks have these. total: the sum of their losses.
        labels, real: those of the current micro-batch; None outside a route, or without padding.
        groups: the groups of its tokens, in a tuple once they are computed.
        recorded: by layer, the moments (2, P, r) or the features (K, r).
    """

    def __init__(self, divergence: str, limit: int | None) -> None:
        self.divergence, self.limit = divergence, limit
        self.n_micro_batches, self.n_tasks = 0, 0
        self.total: Tensor | float = 0.0
        self.labels: Tensor | None = None
        self.real: Tensor | None = None
        self.groups: tuple[TokenGroups | None] | None = None
        self.recorded: dict[str, Tensor] = {}

    def begin(self, labels: Tensor) -> None:
        """Start a micro-batch with the labels of its route."""
        self.labels = labels.detach().cpu()

    def end(self) -> None:
        """Forget the micro-batch, so that nothing keeps its graph."""
        self.labels = self.real = self.groups = None
        self.recorded = {}

    def record(self, name: str, z: Tensor) -> None:
        """Keep what the loss needs of a layer's features z (M, n, r)."""
        assert self.labels is not None
        if self.groups is None:
            found = token_groups(self.labels, z.shape[1], self.real, self.limit)
            self.groups = (None if found is None else found.to(z),)
        (groups,) = self.groups
        if groups is None:
            return
        with torch.autocast(z.device.type, enabled=False):
            features = groups.features(z)
            self.recorded[name] = moments(features, groups) if self.divergence == "kl" else features

    def loss(self) -> Tensor | None:
        """The mean divergence over layers and pairs of tasks; None if nothing was recorded."""
        self.n_micro_batches += 1
        groups = None if self.groups is None else self.groups[0]
        if groups is None:
            return None
        values = list(self.recorded.values())
        if self.divergence == "kl":
            divergences = symmetric_kl(*torch.stack(values, 1))
        else:
            # A kernel matrix for each layer would not fit into memory, so that backward computes it again.
            share = groups.share()
            divergences = torch.stack([checkpoint(squared_mmd, z, share, use_reentrant=False) for z in values])
        loss = mean_over_pairs(divergences)
        self.n_tasks += groups.own.shape[1]
        self.total = self.total + loss.detach()
        return loss
