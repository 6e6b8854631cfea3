"""Combinations of the gradients of tasks, as torchjd computes them (the extra ``jd``).

Each row of a Jacobian is the gradient of one task's share of the loss. The rows are divided by the root of their mean
squared norm first and the result is multiplied by it, since solvers stop at an absolute tolerance. Of a combination
with weights that sum to 1, the multiple by the number of tasks is taken: where gradients do not conflict, it is about
as long as the sum over tasks, which is the gradient of training without balance.

AdamW then keeps one pair of moments for the combined gradient, so that its step is not a multiple of this direction.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from harness.balancing import GradientBalancer
from harness.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class JacobianBalancer(GradientBalancer):
    """A balancer with an aggregator of torchjd."""

    needs: ClassVar[Mapping[str, str]] = {"torchjd": "pip install 'mtlora-harness[jd]'"}

    @abstractmethod
    def aggregator(self, aggregation: Any, n_tasks: int) -> Callable[[Tensor], Tensor]:
        """The aggregator (T, n) -> (n,). aggregation: the module ``torchjd.aggregation``."""

    def aggregate(self, jacobian: Tensor, seed: int) -> Tensor:
        import torch
        from torchjd import aggregation

        n_tasks = len(jacobian)
        scale = jacobian.norm() / n_tasks**0.5
        if not scale:
            return jacobian.sum(0)
        # The aggregators draw from the generator of the CPU, whose state belongs to dropout.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            return self.aggregator(aggregation, n_tasks)(jacobian.div_(scale)).mul_(scale)


@dataclass(frozen=True, kw_only=True)
class PCGrad(JacobianBalancer):
    """The sum over tasks of g_i, made orthogonal to each g_j that it conflicts with, in random order (2001.06782).

    g_i <- g_i - <g_i, g_j> / |g_j|^2 g_j where <g_i, g_j> < 0. The order depends on (seed, stage, step).
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "gradients made orthogonal to those that they conflict with"

    def aggregator(self, aggregation: Any, n_tasks: int) -> Callable[[Tensor], Tensor]:
        return cast("Callable[[Tensor], Tensor]", aggregation.PCGrad())


@dataclass(frozen=True, kw_only=True)
class CAGrad(JacobianBalancer):
    """The direction d with the largest min_i <g_i, d>, for |d - g| <= c |g|, where g is the mean (2110.14048).

    The authors' code also divides by 1 + c^2, which AdamW would undo.

    c: the radius, as released.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "the direction near the mean gradient that helps the worst task most"

    c: float = 0.5

    def __post_init__(self) -> None:
        if self.c < 0:
            raise UsageError(f"balance.c={self.c} must be 0 or above")

    def aggregator(self, aggregation: Any, n_tasks: int) -> Callable[[Tensor], Tensor]:
        cagrad = aggregation.CAGrad(c=self.c)
        return lambda jacobian: n_tasks * cagrad(jacobian)


@dataclass(frozen=True, kw_only=True)
class IMTLG(JacobianBalancer):
    """The weights with sum 1 that make the projections on all g_i / |g_i| equal (IMTL-G, ICLR 2021)."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "the combination with equal projections on the directions of all gradients"

    def aggregator(self, aggregation: Any, n_tasks: int) -> Callable[[Tensor], Tensor]:
        imtl = aggregation.IMTLG()
        return lambda jacobian: n_tasks * imtl(jacobian)


@dataclass(frozen=True, kw_only=True)
class NashMTL(JacobianBalancer):
    """The bargaining solution sum_i a_i g_i, with G a = 1 / a for the Gramian G = J J^T (2202.01017).

    In the release the solver starts from the weights of the step before; here from equal ones, so that a step depends
    only on its own gradients. The weights are not multiplied by the number of tasks.

    iterations: the number of iterations of the solver, as released.
    max_norm: the largest norm of the direction, relative to the root of the
        mean squared norm of the gradients; as released, but there relative to 1.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "the Nash bargaining solution between the tasks"

    iterations: int = 20
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.iterations < 1 or not self.max_norm > 0:
            raise UsageError(
                f"balance.iterations={self.iterations} must be 1 or more, and balance.max_norm={self.max_norm} above 0"
            )

    def aggregator(self, aggregation: Any, n_tasks: int) -> Callable[[Tensor], Tensor]:
        nash = aggregation.NashMTL(n_tasks=n_tasks, max_norm=self.max_norm, optim_niter=self.iterations)

        def solve(jacobian: Tensor) -> Tensor:
            with warnings.catch_warnings():
                # It says that later solutions of the same problem will not be faster. Here each is solved once.
                warnings.filterwarnings("ignore", message="You are solving a parameterized problem")
                return cast("Tensor", nash(jacobian))

        return solve


@dataclass(frozen=True, kw_only=True)
class UPGrad(JacobianBalancer):
    """The mean of all g_i, each projected on the cone of directions that conflict with no gradient (2406.16232)."""

    version: ClassVar[int] = 1
    summary: ClassVar[str] = "the mean of gradients, each projected to conflict with none"

    def aggregator(self, aggregation: Any, n_tasks: int) -> Callable[[Tensor], Tensor]:
        upgrad = aggregation.UPGrad()
        return lambda jacobian: n_tasks * upgrad(jacobian)
