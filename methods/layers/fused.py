"""Folded LoRAs: layers that read the same tensor (q, k and v of an attention) share one product with their A factors.

When single tokens are decoded, a product costs a kernel launch rather than arithmetic, so A_q x, A_k x and A_v x are
computed as one product. Projections are grouped by module name; at run time the cached product is reused only if the
input is the same tensor object.

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

# Names of layers of one module that usually read the same tensor. Where they do not (cross-attention), the results are
# the same, and some rows of the product are not used.
SAME_INPUT = (
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
    """The result of one product: the z of each layer that has not used it yet, kept while x exists."""

    __slots__ = ("unused", "version", "x")

    def __init__(self, x: Tensor, parts: Sequence[Tensor]) -> None:
        unused = dict(enumerate(parts))
        self.unused = unused
        self.version = x._version
        self.x = ref(x, lambda _: unused.clear())


class FusedDownProjection:
    """The A factors of layers with the same input. The first layer that is given a tensor computes z for all of them.

    The z of another layer is used once, if its x is the same tensor object and was not written to since. Nothing is
    shared where a graph is recorded (backward of one layer would free it for the others), nor in inference mode, where
    writes to x are not counted.
    """

    def __init__(self, factors: Sequence[Tensor]) -> None:
        self._ranks = [a.shape[0] for a in factors]
        self._stacked = torch.cat(list(factors)) if len(factors) > 1 else factors[0]
        self._factors = torch.split_with_sizes(self._stacked, self._ranks)
        self._last: _Product | None = None

    def product(self, index: int, x: Tensor) -> Tensor:
        """z = A x of one layer."""
        recorded = x.requires_grad and torch.is_grad_enabled()
        last = self._last
        if last is not None and last.x() is x and last.version == x._version and not recorded:
            z = last.unused.pop(index, None)
            if z is not None:
                if not last.unused:
                    self._last = None
                return z
        if len(self._factors) == 1 or recorded or x.is_inference() or torch.compiler.is_compiling():
            return linear(x, self._factors[index])
        parts = torch.split_with_sizes(linear(x, self._stacked), self._ranks, -1)
        self._last = last = _Product(x, parts)
        return last.unused.pop(index)


@dataclass(frozen=True, kw_only=True)
class FoldedLoRA:
    """One layer's plain LoRA: its index among the layers whose A factors are fused, and b (d_out, r)."""

    down_projection: FusedDownProjection
    index: int
    b: Tensor

    def down(self, x: Tensor) -> Tensor:
        """z = A x, (..., r)."""
        return self.down_projection.product(self.index, x)


def fuse_down_projections(factors: Mapping[str, LoRAFactors]) -> dict[str, FoldedLoRA]:
    """Plain LoRAs by module name, with the A factors of layers with the same input stacked."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, lora in factors.items():
        parent, _, leaf = name.rpartition(".")
        kind: object = next((i for i, names in enumerate(SAME_INPUT) if leaf in names), leaf)
        groups.setdefault((parent, kind, lora.a.shape[1], lora.a.dtype, lora.a.device), []).append(name)
    loras = {}
    for names in groups.values():
        fused = FusedDownProjection([factors[name].a for name in names])
        loras.update({n: FoldedLoRA(down_projection=fused, index=i, b=factors[n].b) for i, n in enumerate(names)})
    return loras
