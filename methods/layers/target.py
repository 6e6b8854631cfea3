"""The target of an adapted layer, and everything that its initial values may depend on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from harness.seeding import stable_seed
from methods.layers.routing import Route

M = TypeVar("M", bound=nn.Module)


def method_seed(*key: object) -> int:
    """The seed of a method's own random choice: an integer below 2**63 that depends only on the key."""
    # The initial weights of all published runs were drawn with this separator.
    return stable_seed(*key, separator="\0")


def generator(*key: object) -> torch.Generator:
    """A generator seeded by the key, on the CPU, so that its values are equal on every device."""
    return torch.Generator().manual_seed(method_seed(*key))


def block_of(name: str) -> str:
    """The name up to the first number (``model.layers.3``); "" for a layer outside every block."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else ""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertFactors:
    """The stacked factors of E experts of rank r: a (E r, d_in), or (r, d_in) if they share it, and b (d_out, E r)."""

    a: nn.Parameter
    b: nn.Parameter


@dataclass(frozen=True, kw_only=True)
class TargetModule:
    """One linear layer to adapt.

    Attributes:
        name: its module name in the base model.
        linear: the frozen layer, d_in to d_out.
        tasks: the names of the tasks; a task's index is its route.
        seed: the run's seed.
        dropout: the probability with which the input of the adapted part is dropped in training.
        route: the state that all layers of the adapter share.
        modules: gates and embeddings that layers share, by key; one mapping for each adapter.
        siblings: the linear layers of its parent module by name, this one too, adapted or not.
        blocks: the names of all blocks of the model with linear layers, adapted or not, from the input to the output.
    """

    name: str
    linear: nn.Linear
    tasks: tuple[str, ...]
    seed: int
    dropout: float
    route: Route
    modules: dict[str, nn.Module]
    blocks: tuple[str, ...] = ()
    siblings: Mapping[str, nn.Linear] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the adapter's parameters: float64 on a float64 base model, otherwise float32."""
        return torch.float64 if self.linear.weight.dtype is torch.float64 else torch.float32

    @property
    def block(self) -> str:
        """The name of the layer's block; see ``block_of``."""
        return block_of(self.name)

    def depth_group(self, n: int) -> int:
        """The index of the layer's group, if the blocks of its stack are divided by depth into n groups.

        Encoder and decoder are two stacks. A layer outside every block is in group 0.
        """
        stack = [block for block in self.blocks if block.rpartition(".")[0] == self.block.rpartition(".")[0]]
        return stack.index(self.block) * n // len(stack) if self.block in stack else 0

    def scope(self, scope: str) -> str:
        """The name that all layers of a scope ("linear", "block" or "model") have in common."""
        return {"linear": self.name, "block": self.block, "model": ""}[scope]

    def shared(self, key: str, make: Callable[[], M]) -> M:
        """The module with this key, created by the first layer that requests it."""
        if key not in self.modules:
            self.modules[key] = make().to(device=self.linear.weight.device, dtype=self.dtype)
        return cast("M", self.modules[key])

    def experts(self, names: Sequence[object], rank: int, splits: int = 1) -> ExpertFactors:
        """New experts, stacked: A (E rank, d_in) kaiming-uniform with a = sqrt(5), B (d_out, E rank) zero.

        Args:
            names: one for each expert; its initial values depend only on (seed, module name, its name).
            rank: the rank of each expert.
            splits: the number of equal parts of d_in, each with a fan-in of its own (MHR).
        """
        bound = 1 / math.sqrt(self.linear.in_features // splits)
        return self.stack(
            [
                torch.empty(rank, self.linear.in_features).uniform_(-bound, bound, generator=self.generator(name))
                for name in names
            ]
        )

    def normal_experts(self, names: Sequence[object], rank: int, deviation: float) -> ExpertFactors:
        """As ``experts``, with A drawn from a normal distribution of mean 0 and this standard deviation."""
        return self.stack(
            [
                torch.empty(rank, self.linear.in_features).normal_(0, deviation, generator=self.generator(name))
                for name in names
            ]
        )

    def stack(self, parts: Sequence[Tensor]) -> ExpertFactors:
        """A (E rank, d_in) from each expert's part (rank, d_in), and B of zeros, on the layer's device."""
        a = torch.cat(list(parts)).to(device=self.linear.weight.device, dtype=self.dtype)
        b = a.new_zeros(self.linear.out_features, a.shape[0])
        return ExpertFactors(a=nn.Parameter(a), b=nn.Parameter(b))

    def generator(self, name: object) -> torch.Generator:
        """The generator of one expert's initial values."""
        return generator(self.seed, self.name, name)
