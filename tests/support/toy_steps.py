"""Training steps on random toy sequences, for tests of the mathematics of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from harness.balancing import BalancedStage, Balancer
from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.method import AdapterMethod, Trait
from harness.models.loading import LoadedModel
from harness.testing.toys import perturb
from harness.training.optimiser import trained_parameters
from harness.training.packing import Layout
from harness.training.step import Stage, StepRunner, UseTaskGradients
from harness.training.task_balance import StageBalance, TaskBalancing

TASKS = ("one", "two", "three")
ROUTES = Routes(TASKS)
PACKED, PADDED = Layout(packed=True), Layout(packed=False)
# The toy computes in float64, but its norms in float32: where an input of a norm is rounded another way on some CPU,
# its output differs by 6e-8. Mistakes of packing are larger than 1e-4.
CLOSE = 1e-6


def as_loaded(model: Any) -> LoadedModel:
    """A model without a tokenizer, on the CPU."""
    return LoadedModel(
        model=model,
        tokenizer=None,
        device=torch.device("cpu"),
        dtype=next(model.parameters()).dtype,
        n_parameters=0,
        max_context=256,
        encoder_decoder=bool(model.config.is_encoder_decoder),
    )


def make_sequences(n: int = 11, seed: int = 0, vocabulary: int = 97) -> list[Encoded]:
    """Sequences of random tokens and lengths, of the three tasks in turn."""
    draw = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(t) for t in draw.integers(1, vocabulary, draw.integers(low, high)))

    return [Encoded(task=TASKS[i % 3], prompt=tokens(1, 30), target=tokens(1, 12), truncated=False) for i in range(n)]


def make_steps(
    model: Any,
    method: AdapterMethod,
    layout: Layout,
    *,
    balance: StageBalance | None = None,
    balancer: Balancer | None = None,
    **config: Any,
) -> StepRunner:
    """The steps of a stage that trains every parameter of the method; ``config``: fields of TrainConfig."""
    adapter = method.attach(model, TASKS, seed=3)
    perturb(adapter)
    trained = trained_parameters(adapter, method)
    subject = BalancedStage(name="all", tasks=TASKS, epoch=2, seed=3)
    stage = Stage(
        name="all",
        steps=10,
        key=(3,),
        reads=Trait.LABEL_FREE in method.traits,
        trained=trained,
        balance=balance,
        combined=None if balancer is None else TaskBalancing(balancer=balancer).combined(subject, trained),
    )
    return StepRunner(as_loaded(model), adapter, TrainConfig(**{"clip": None, **config}), stage, layout)


def gradients(
    steps: StepRunner, sequences: Sequence[Encoded], use: UseTaskGradients | None = None
) -> tuple[list[float], dict[str, torch.Tensor | None]]:
    """The losses of a step, over all tasks and of each, and the gradients that the optimiser gets."""
    found: dict[str, torch.Tensor | None] = {}

    def copy(*_: Any) -> None:
        # PyTorch calls the hook a second time inside the step, without the gradients of parts of tasks, once a plain
        # AdamW has been created in the process: that makes the step of the parent class call hooks too.
        if not found:
            found.update({n: None if p.grad is None else p.grad.clone() for n, p in steps.stage.parameters.items()})

    handle = steps.optimiser.register_step_pre_hook(copy)
    steps.loaded.model.train()
    result = steps.step(4, sequences, ROUTES, use=use)
    steps.loaded.model.eval()
    handle.remove()
    return [result.loss, *result.by_task.values()], found
