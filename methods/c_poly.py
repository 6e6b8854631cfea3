"""C-Poly (Customized Polytropon, arXiv 2312.03248), after the authors' code; Poly and MHR are variants of it.

Common skills are selected by a learned assignment with noise in training; specific skills by free weights of each task.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.method import Adapter, ArtefactKind, Ranks, Trainer, Trait
from harness.transfer import to_device
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
from methods.layers.gates import select_labels

EPSILON = 1e-12  # Added to the sum in the normalisation, as in the authors' code.
START = 1e-3  # Initial logits of the assignment are uniform in [-START, START].


class PolyGate(Gate):
    """weights = [a ; c] over A common and B T specific skills: (T, Q (A + B T)) for Q splits of the features.

    a = sigmoid(Z_t + logistic noise) in training (a relaxed Bernoulli of temperature 1), else sigmoid(Z_t), divided by
    its sum over the skills of a split. c = V_t, the same in each split: a free matrix in which a task's own skills
    initially have the weight 1 / B and those of other tasks 0; or fixed at these values; or there is none.

    Attributes:
        assignment: Z, (T, Q A). specific: V, (T, B T), a buffer if it is fixed; None in the variant "poly".
        noise: the logistic noise of the step ``noise_step``, (N, Q A) on the CPU, a row for each example or each task.
    """

    task_rows = ("assignment", "specific")

    def __init__(self, target: TargetModule, method: CPoly) -> None:
        super().__init__()
        self.key, self.seed, self.splits, self.n_common = target.name, target.seed, method.n_splits, method.n_common
        self.n_specific = method.n_specific
        self.by_example = method.noise == "example"
        rows = [
            torch.empty(self.splits * self.n_common).uniform_(
                -START, START, generator=generator(target.seed, target.name, "assignment", task)
            )
            for task in target.tasks
        ]
        self.assignment = nn.Parameter(torch.stack(rows))
        own = torch.eye(len(rows)).repeat_interleave(self.n_specific, 1) / self.n_specific
        self.fixed = method.variant == "simple"
        self.specific: Tensor | None
        if method.variant == "c_poly":
            self.specific = nn.Parameter(own)
        else:
            self.register_buffer("specific", own if self.fixed else None)
        self.noise_step: tuple[str, int] | None = None
        self.noise = torch.empty(0)

    @torch.no_grad()
    def leave_out(self, tasks: Sequence[int]) -> None:
        """Give the specific skills of tasks that are not trained weight 0 in their tasks.

        Their factors A are random, and in a sum of factors they would meet the trained factors B of other skills.
        """
        if self.specific is not None:
            self.specific[list(tasks)] = 0

    def task_weights(self) -> Tensor:
        return self._weights(self.assignment, self.specific)

    def label_weights(self, route: Route) -> Tensor:
        labels, examples = route.labels, route.examples
        assert labels is not None
        assert examples is not None
        if not self.training:
            return self.task_weights()[labels]
        noise = self._noise_of(route).to(labels.device)[examples if self.by_example else labels]
        return self._weights(self.assignment[labels] + noise, None if self.specific is None else self.specific[labels])

    @classmethod
    def of_labels(cls, gates: Sequence[Any], route: Route, dtype: torch.dtype) -> Sequence[Tensor]:
        """Weights with noise are computed for each example (or each task), and then selected for the labels."""
        if not gates[0].training:
            return super().of_labels(gates, route, dtype)
        by_example, device = gates[0].by_example, gates[0].assignment.device
        n = route.n_examples if by_example else len(gates[0].assignment)
        noise = to_device(torch.stack([gate._noise_of(route)[:n] for gate in gates]), device)  # (L, n, Q A)
        logits = torch.stack([gate.assignment for gate in gates])
        specific = None if gates[0].specific is None else torch.stack([gate.specific for gate in gates])
        if by_example:
            assert route.example_labels is not None
            tasks = (route.example_labels[:, None] == torch.arange(logits.shape[1], device=device)).to(logits.dtype)
            logits, specific = tasks @ logits, None if specific is None else tasks @ specific
        weights = gates[0]._weights(logits + noise, specific).to(dtype)
        own = route.own_of_examples(dtype) if by_example else route.own(dtype)
        return select_labels(own, weights, gates[0].columns)

    def group_key(self, route: Route) -> Hashable:
        if self.training and route.step is None:
            return None  # The forward says what is missing.
        return (
            *self.assignment.shape,
            self.n_specific,
            self.splits,
            self.fixed,
            self.specific is None,
            self.by_example,
        )

    def active_experts(self, task: int) -> Sequence[int] | None:
        if not self.fixed:
            return None
        first = self.n_common + task * self.n_specific
        return [*range(self.n_common), *range(first, first + self.n_specific)]

    def expert_tasks(self) -> Sequence[int | None]:
        own = [task for task in range(len(self.assignment)) for _ in range(self.n_specific)]
        return [*[None] * self.n_common, *own] if self.fixed else ()

    def _weights(self, logits: Tensor, specific: Tensor | None) -> Tensor:
        """The weights (..., Q (A + B T)) from the logits (..., Q A) and the weights of specific skills (..., B T)."""
        a = torch.unflatten(torch.sigmoid(logits), -1, (self.splits, self.n_common))
        a = a / (a.sum(-1, keepdim=True) + EPSILON)
        if specific is not None:
            a = torch.cat([a, specific[..., None, :].expand(*a.shape[:-1], -1)], -1)
        return a.flatten(-2)

    def _noise_of(self, route: Route) -> Tensor:
        """The logistic noise of the current step, the same in every micro-batch and in a recomputed forward."""
        if route.step is None:
            raise RuntimeError("noise is drawn once for each step: call adapter.begin_step(stage, step) first")
        n = route.n_examples if self.by_example else len(self.assignment)
        if route.step != self.noise_step or len(self.noise) < n:
            draw = generator(self.seed, self.key, "noise", *route.step)
            # The first rows are the same however many are drawn, because the generator draws them one after another.
            uniform = torch.rand((n, self.assignment.shape[1]), generator=draw, dtype=torch.float64)
            self.noise = torch.logit(uniform, eps=1e-7).to(self.assignment.dtype)
            self.noise_step = route.step
        return self.noise


@dataclass(frozen=True, kw_only=True)
class CPoly(LoRAMethod):
    """h = W0 x + alpha / rank (sum_k w_k B_k) (sum_k w_k A_k) x, with a router for each layer.

    n_common: the number A of skills that all tasks share. n_specific: the number B of skills of each task.
    rank: of each skill.
    variant: "c_poly" mixes the specific skills of all tasks by free weights; "simple": each task uses only its own
        specific skills; "poly": no specific skills.
    n_splits: the number Q of feature splits (MHR), each with its own weights of common skills.
    noise: drawn for each "example", as in the authors' code, or for each "task" of a step.
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
    n_specific: int = 1
    rank: int = 16
    variant: str = "c_poly"
    n_splits: int = 1
    noise: str = "example"
    merge: str = "factor"
    gate_lr: float = 100.0

    def __post_init__(self) -> None:
        require_choice("method.variant", self.variant, ["c_poly", "simple", "poly"])
        require_choice("method.merge", self.merge, ["factor", "output"])
        require_choice("method.noise", self.noise, ["example", "task"])
        if self.n_splits != 1 and self.merge != "factor":
            raise UsageError(
                f"method.n_splits={self.n_splits} needs method.merge=factor: outputs have no splits to sum"
            )
        for name in ("n_common", "n_specific", "n_splits"):
            if getattr(self, name) < 1:
                raise UsageError(f"method.{name}={getattr(self, name)}: give 1 or more")

    def ranks(self, n_tasks: int) -> Ranks:
        stored = self.n_common + (0 if self.variant == "poly" else n_tasks * self.n_specific)
        active = self.n_common + self.n_specific if self.variant == "simple" else stored
        return Ranks(stored=stored * self.rank, active=self.rank * (active if self.merge == "output" else 1))

    def layer(self, target: TargetModule) -> AdaptedLinear:
        if target.linear.in_features % self.n_splits or target.linear.out_features % self.n_splits:
            raise UsageError(
                f"method.n_splits={self.n_splits} does not divide {target.name}, {target.linear.in_features} to "
                f"{target.linear.out_features} features: use another number or other method.targets"
            )
        names: list[object] = list(range(self.n_common))
        if self.variant != "poly":
            own = ["", *(f".{j}" for j in range(1, self.n_specific))]
            names += [f"task {task}{j}" for task in target.tasks for j in own]
        gate = target.shared(f"{target.name}.gate", lambda: PolyGate(target, self))
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
        own = cast("LoRAAdapter", adapter)
        untrained = [i for i, task in enumerate(tasks) if not trainer.examples(task, 1, "all")]
        for gate in own.modules.values():
            if isinstance(gate, PolyGate):
                gate.leave_out(untrained)
        trainer.train("all")
        trainer.artefact("skills", gate_weights(own), ArtefactKind.SKILLS)
