"""C-Poly (Customized Polytropon, arXiv 2312.03248), after the authors' code; Poly and MHR are variants of it.

Common skills are selected by a learned assignment with noise in training; specific skills by free weights of each task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.method import Adapter, ArtefactKind, Ranks, Trainer, Trait
from methods.base import (
    AdaptedLinear,
    Gate,
    GatedLinear,
    LoRAAdapter,
    LoRAMethod,
    Route,
    TargetModule,
    gate_weights,
    generator,
    require_choice,
)

EPSILON = 1e-12  # Added to the sum in the normalisation, as in the authors' code.
START = 1e-3  # Initial logits of the assignment are uniform in [-START, START].


class PolyGate(Gate):
    """weights = [a ; c] over A common and T specific skills, for Q splits (T, Q A) or one (T, A + T).

    a = sigmoid(Z_t + logistic noise) in training (a relaxed Bernoulli of temperature 1), else sigmoid(Z_t), divided by
    its sum over the skills of a split. c = V_t, a free matrix that is initially the identity; or fixed; or none.

    Attributes:
        assignment: Z, (T, Q A). specific: V, (T, T); None in the variant "poly".
        noise: the logistic noise of the step ``noise_step``, (T, Q A).
    """

    def __init__(self, target: TargetModule, n_common: int, variant: str, splits: int) -> None:
        super().__init__()
        self.key, self.seed, self.splits, self.n_common = target.name, target.seed, splits, n_common
        rows = [
            torch.empty(splits * n_common).uniform_(
                -START, START, generator=generator(target.seed, target.name, "assignment", task)
            )
            for task in target.tasks
        ]
        self.assignment = nn.Parameter(torch.stack(rows))
        self.specific: Tensor | None
        if variant == "c_poly":
            self.specific = nn.Parameter(torch.eye(len(rows)))
        else:
            fixed = torch.eye(len(rows)) if variant == "simple" else None
            self.register_buffer("specific", fixed, persistent=False)
        self.fixed = variant == "simple"
        self.noise_step: tuple[str, int] | None = None
        self.noise = torch.empty(0)

    def task_weights(self) -> Tensor:
        return self._weights(self.assignment)

    def label_weights(self, route: Route) -> Tensor:
        assert route.labels is not None
        if not self.training:
            return self.task_weights()[route.labels]
        return self._weights(self.assignment + self._noise_of(route))[route.labels]

    def active_experts(self, task: int) -> Sequence[int] | None:
        return [*range(self.n_common), self.n_common + task] if self.fixed else None

    def _weights(self, logits: Tensor) -> Tensor:
        a = torch.unflatten(torch.sigmoid(logits), -1, (self.splits, self.n_common))
        a = (a / (a.sum(-1, keepdim=True) + EPSILON)).flatten(1)
        return a if self.specific is None else torch.cat([a, self.specific], -1)

    def _noise_of(self, route: Route) -> Tensor:
        """The logistic noise of the current step: equal in every micro-batch and in a recomputed forward."""
        if route.step is None:
            raise RuntimeError("noise is drawn once for each step: call adapter.begin_step(stage, step) first")
        if route.step != self.noise_step:
            draw = generator(self.seed, self.key, "noise", *route.step)
            uniform = torch.rand(self.assignment.shape, generator=draw, dtype=torch.float64)
            self.noise = torch.logit(uniform, eps=1e-7).to(self.assignment)
            self.noise_step = route.step
        return self.noise


@dataclass(frozen=True, kw_only=True)
class CPoly(LoRAMethod):
    """h = W0 x + alpha / rank (sum_k w_k B_k) (sum_k w_k A_k) x, with a router for each layer.

    n_common: the number A of skills that all tasks share. rank: of each skill.
    variant: "c_poly" adds one specific skill for each task, mixed by free weights; "simple": each task uses only its
        own specific skill; "poly": no specific skills.
    n_splits: the number of feature splits, each with its own router (MHR; needs variant "poly").
    merge: skills by "factor", as in the authors' code, or by "output", as in Eq. 1 of the paper.
    gate_lr: the factor on the learning rate of the assignment Z, which hardly moves at that of the skills (MTTL, the
        code that Poly is from, trains it at 0.1).
    """

    version: ClassVar[int] = 2
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.ROUTED, Trait.FOLDS})
    summary: ClassVar[str] = "common skills by a learned assignment, and task-specific skills"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "simple": {"variant": "simple"},
        "poly": {"variant": "poly", "n_common": 4},
        "mhr": {"variant": "poly", "n_common": 4, "n_splits": 4},
        "output": {"merge": "output"},
        "lora_scale": {"alpha": 32.0},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"method.n_common": 3, "method.rank": 2, "method.variant": "c_poly", "train.epochs": 1.0}
    }

    alpha: float = 1.0
    n_common: int = 3
    rank: int = 16
    variant: str = "c_poly"
    n_splits: int = 1
    merge: str = "factor"
    gate_lr: float = 100.0

    def __post_init__(self) -> None:
        require_choice("method.variant", self.variant, ["c_poly", "simple", "poly"])
        require_choice("method.merge", self.merge, ["factor", "output"])
        if self.n_splits != 1 and (self.variant != "poly" or self.merge != "factor"):
            raise UsageError(f"method.n_splits={self.n_splits} needs method.variant=poly and method.merge=factor")
        if self.n_common < 1:
            raise UsageError(f"method.n_common={self.n_common}: a router needs at least 1 skill")

    def ranks(self, n_tasks: int) -> Ranks:
        stored = self.n_common + (0 if self.variant == "poly" else n_tasks)
        active = {"c_poly": stored, "simple": self.n_common + 1, "poly": stored}[self.variant]
        return Ranks(stored=stored * self.rank, active=self.rank * (active if self.merge == "output" else 1))

    def layer(self, target: TargetModule) -> AdaptedLinear:
        if target.linear.in_features % self.n_splits or target.linear.out_features % self.n_splits:
            raise UsageError(
                f"method.n_splits={self.n_splits} does not divide {target.name}, {target.linear.in_features} to "
                f"{target.linear.out_features} features: use another number or other method.targets"
            )
        names = [*range(self.n_common), *(f"task {task}" for task in target.tasks if self.variant != "poly")]
        gate = target.shared(
            f"{target.name}.gate", lambda: PolyGate(target, self.n_common, self.variant, self.n_splits)
        )
        return GatedLinear(
            target,
            target.experts(names, self.rank, self.n_splits),
            gate,
            rank=self.rank,
            scale=self.alpha / self.rank,
            merge=self.merge,
        )

    def lr_factor(self, parameter: str) -> float:
        return self.gate_lr if parameter.endswith(".assignment") else 1.0

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """One stage with all tasks mixed; then the assignment of skills to tasks is saved for reports."""
        trainer.train("all")
        trainer.artefact("skills", gate_weights(cast("LoRAAdapter", adapter)), ArtefactKind.SKILLS)
