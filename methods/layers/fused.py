"""Folded LoRAs beside their weights: layers that read one tensor (q, k and v of an attention) share a product by A.

A decoded token is a few rows, whose products cost a call more than arithmetic: A_q x, A_k x and A_v x in one product
are one call. Which tensor a layer reads is only seen when it comes, so names say who may be asked together, and
identity says who was.

Shapes: x (..., d_in), A of layer i (r_i, d_in) and its z = A x (..., r_i).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import ref

import torch
from torch import Tensor
from torch.nn.functional import linear

from harness.method import LoRAFactors

# Names of layers of one module that read the same tensor. Where they do not (cross-attention), results are the same
# and the product has rows that nobody asks for.
TOGETHER = (
    {"q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa"},
    {"q", "k", "v"},
    {"query", "key", "value"},
    {"query_proj", "key_proj", "value_proj"},
    {"q_lin", "k_lin", "v_lin"},
    {"linear_q", "linear_k", "linear_v"},
    {"wq", "wk", "wv"},
    {"in_proj_qkvz", "in_proj_ba"},
    {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"},
    {"gate_proj", "up_proj"},
    {"w1", "w3"},
    {"wi_0", "wi_1"},
)


class _Product:
    """What one product gave: the z of each sibling that has not asked yet, for as long as x lives."""

    __slots__ = ("left", "version", "x")

    def __init__(self, x: Tensor, parts: Sequence[Tensor]) -> None:
        left = dict(enumerate(parts))
        self.left = left
        self.version = x._version
        self.x = ref(x, lambda _: left.clear())


class Siblings:
    """The A factors of some layers. Whoever is asked first with a tensor computes for all.

    Another layer's share is used once, if x is the very tensor and was not written to. It is not made where a graph is
    recorded (backward of one layer would free it for the others), nor where writing to x could not be noticed.
    """

    def __init__(self, factors: Sequence[Tensor]) -> None:
        self._sizes = [a.shape[0] for a in factors]
        self._all = torch.cat(list(factors)) if len(factors) > 1 else factors[0]
        self._own = torch.split_with_sizes(self._all, self._sizes)
        self._last: _Product | None = None

    def product(self, place: int, x: Tensor) -> Tensor:
        """A x of one layer."""
        recorded = x.requires_grad and torch.is_grad_enabled()
        last = self._last
        if last is not None and last.x() is x and last.version == x._version and not recorded:
            z = last.left.pop(place, None)
            if z is not None:
                if not last.left:
                    self._last = None
                return z
        if len(self._own) == 1 or recorded or x.is_inference() or torch.compiler.is_compiling():
            return linear(x, self._own[place])
        parts = torch.split_with_sizes(linear(x, self._all), self._sizes, -1)
        self._last = last = _Product(x, parts)
        return last.left.pop(place)


@dataclass(frozen=True, kw_only=True)
class Folded:
    """One layer's plain LoRA: its place among the siblings that hold A, and b (d_out, r)."""

    siblings: Siblings
    place: int
    b: Tensor

    def down(self, x: Tensor) -> Tensor:
        """z = A x."""
        return self.siblings.product(self.place, x)


def side_by_side(factors: Mapping[str, LoRAFactors]) -> dict[str, Folded]:
    """Plain LoRAs by module name, those of siblings with their A factors stacked."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, lora in factors.items():
        parent, _, leaf = name.rpartition(".")
        kind: object = next((i for i, names in enumerate(TOGETHER) if leaf in names), leaf)
        groups.setdefault((parent, kind, lora.a.shape[1], lora.a.dtype, lora.a.device), []).append(name)
    found = {}
    for names in groups.values():
        siblings = Siblings([factors[name].a for name in names])
        found.update({n: Folded(siblings=siblings, place=i, b=factors[n].b) for i, n in enumerate(names)})
    return found
