"""Merging of updates: pruning, sign election, and the best plain LoRA of a matrix.

Updates are pruned one at a time and again in each pass over them, so that a few matrices of an update's size are in
memory, however many updates there are. ``Updates`` gives the pruned update i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.method import LoRAFactors

Updates = Callable[[int], Tensor]


def trim(update: Tensor, density: float) -> Tensor:
    """The share ``density`` of the entries that are largest in magnitude; the others are 0."""
    magnitudes = update.abs()
    n = int(density * update.numel())
    if not n:
        return torch.zeros_like(update)
    # The n-th largest magnitude; entries of equal magnitude are all kept.
    least = magnitudes.reshape(-1).kthvalue(update.numel() - n + 1).values
    return torch.where(magnitudes >= least, update, torch.zeros_like(update))


def drop(update: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Entries that are kept with the probability ``density`` and divided by it, so that each keeps its expectation.

    generator: on the CPU, so that the same entries are dropped on every device.
    """
    kept = torch.rand(update.shape, generator=generator) < density
    return update * kept.to(update.device) / density


def total(updates: Updates, n: int) -> Tensor:
    """The sum of n updates."""
    found = updates(0)
    for i in range(1, n):
        found = found + updates(i)
    return found


def disjoint_mean(updates: Updates, n: int) -> Tensor:
    """For each entry, the sign of the sum is elected; then the mean over the updates that have this sign; else 0."""
    whole = total(updates, n)
    elected = torch.where(whole >= 0, 1, -1).to(whole.dtype)
    found, count = torch.zeros_like(whole), torch.zeros_like(whole)
    for i in range(n):
        update = updates(i)
        agrees = update.sign() == elected
        found += update * agrees
        count += agrees
    return found / count.clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Truncated:
    """The best LoRA of some rank, and the share of the matrix that it keeps: of the sum of the squared entries."""

    lora: LoRAFactors
    kept: float


def truncate(update: Tensor, rank: int) -> Truncated:
    """The LoRA B A of this rank that is nearest to an update (d_out, d_in) in the sum of squared differences.

    It projects the update on its first singular vectors of the shorter side: the eigenvectors of its Gram matrix. That
    squares the singular values, so it is done in float64.
    """
    matrix = update.double()
    tall = matrix.shape[0] > matrix.shape[1]
    values, vectors = torch.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)
    first = vectors[:, -rank:]
    a, b = (first.T, matrix @ first) if tall else (first.T @ matrix, first)
    squares = values.clamp(min=0)
    kept = float(squares[-rank:].sum() / squares.sum()) if squares.any() else 1.0
    return Truncated(lora=LoRAFactors(a=a.to(update.dtype), b=b.to(update.dtype)), kept=kept)
