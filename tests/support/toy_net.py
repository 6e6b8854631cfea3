"""A toy network of two linear layers, and nothing that rounds to float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TASKS = ["a", "b.c", "d"]
LABELS = [2, 0, 1, 0]


class Net(nn.Module):
    """tanh between them; float64, frozen, always equal."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Linear(8, 12)
        self.second = nn.Linear(12, 4, bias=False)
        self.to(torch.float64).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def inputs() -> Tensor:
    """Four rows of three tokens."""
    return torch.randn(4, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
