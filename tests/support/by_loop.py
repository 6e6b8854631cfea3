"""The toy network with the shares of its adapted layers added by hand, one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from toy_net import LABELS, TASKS, Net

from harness.testing.toys import perturb
from methods.base import LoRAMethod

Share = Callable[[str, int, Tensor, Mapping[str, Tensor]], Tensor]
"""(module, task, input (n, d_in), parameters) -> what is added to the base's output."""


def by_loop(net: Any, share: Share, x: Tensor, labels: list[int], values: Mapping[str, Tensor]) -> Tensor:
    """The network row by row, with the shares added by hand."""
    rows = []
    for row, task in zip(x, labels, strict=True):
        hidden = torch.tanh(net.first.base(row) + share("first", task, row, values))
        rows.append(net.second.base(hidden) + share("second", task, hidden, values))
    return torch.stack(rows)


def assert_equals_loop(method: LoRAMethod, share: Share, x: Tensor) -> None:
    """Outputs and the gradient of every parameter, to 1e-10."""
    net = Net().eval()
    adapter = method.attach(net, TASKS, seed=0)
    perturb(adapter)
    target = torch.randn(4, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with adapter.route(torch.tensor(LABELS)):
        out = net(x)
        (out * target).sum().backward()
    values = {n: p.detach().clone().requires_grad_() for n, p in adapter.trainable().items()}
    expected = by_loop(net, share, x, LABELS, values)
    (expected * target).sum().backward()
    assert (out - expected).abs().max() < 1e-10
    assert len(values) > 2
    for name, parameter in adapter.trainable().items():
        assert values[name].grad is not None, name
        assert values[name].grad.any(), name
        assert (parameter.grad - values[name].grad).abs().max() < 1e-10, name


def expert(values: Mapping[str, Tensor], module: str, k: int, rank: int) -> tuple[Tensor, Tensor]:
    part = slice(k * rank, (k + 1) * rank)
    return values[f"{module}.A"][part], values[f"{module}.B"][:, part]
