"""Where an adapted layer is put and all that its initial values may depend on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from methods.layers.routing import Route

M = TypeVar("M", bound=nn.Module)


def number(*key: object) -> int:
    """A number below 2**63 that depends on the key alone, on every machine."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*key: object) -> torch.Generator:
    """A generator on the CPU, seeded by the key alone, so that values are equal on every device."""
    return torch.Generator().manual_seed(number(*key))


@dataclass(frozen=True, kw_only=True)
class Site:
    """One linear layer to adapt.

    name: its module name. modules: gates and embeddings that layers share, by key; one mapping per adapter.
    """

    name: str
    linear: nn.Linear
    tasks: tuple[str, ...]
    seed: int
    dropout: float
    route: Route
    modules: dict[str, nn.Module]

    @property
    def dtype(self) -> torch.dtype:
        """Of the adapter's parameters: float32, or float64 on a float64 base."""
        return torch.float64 if self.linear.weight.dtype is torch.float64 else torch.float32

    @property
    def block(self) -> str:
        """The name up to the first number (``model.layers.3``); "" for a layer outside of every block."""
        parts = self.name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
        return ".".join(parts[: numbers[0] + 1]) if numbers else ""

    def scope(self, scope: str) -> str:
        """The name that all layers of a scope ("linear", "block" or "model") have in common."""
        return {"linear": self.name, "block": self.block, "model": ""}[scope]

    def shared(self, key: str, make: Callable[[], M]) -> M:
        """The one module of that key, made by the first layer that asks for it."""
        if key not in self.modules:
            self.modules[key] = make().to(device=self.linear.weight.device, dtype=self.dtype)
        return cast("M", self.modules[key])

    def experts(self, names: Sequence[object], rank: int, splits: int = 1) -> tuple[nn.Parameter, nn.Parameter]:
        """Fresh experts, stacked: A (E rank, d_in) kaiming-uniform with a = sqrt(5), B (d_out, E rank) zero.

        Args:
            names: of the experts; an expert's values depend on (seed, module name, its name) alone.
            splits: equal parts of d_in, each a fan-in of its own (MHR).
        """
        bound = 1 / math.sqrt(self.linear.in_features // splits)
        return self.parameters(
            [
                torch.empty(rank, self.linear.in_features).uniform_(-bound, bound, generator=self.generator(name))
                for name in names
            ]
        )

    def normal_experts(self, names: Sequence[object], rank: int, deviation: float) -> tuple[nn.Parameter, nn.Parameter]:
        """As ``experts``, with A normal of mean 0."""
        return self.parameters(
            [
                torch.empty(rank, self.linear.in_features).normal_(0, deviation, generator=self.generator(name))
                for name in names
            ]
        )

    def parameters(self, parts: Sequence[Tensor]) -> tuple[nn.Parameter, nn.Parameter]:
        """The parameter A made of the experts' parts and a B of zeros, on the layer's device."""
        a = torch.cat(list(parts)).to(device=self.linear.weight.device, dtype=self.dtype)
        return nn.Parameter(a), nn.Parameter(a.new_zeros(self.linear.out_features, a.shape[0]))

    def generator(self, name: object) -> torch.Generator:
        """Of one expert's initial values."""
        return generator(self.seed, self.name, name)
