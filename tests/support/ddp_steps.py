"""Twenty steps of a toy in float64, by itself or under torchrun: python tests/support/ddp_steps.py OUT.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.balancing import BalancedStage
from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.method import Trait
from harness.models.loading import LoadedModel
from harness.registry import balancer_class, method_class
from harness.runtime.distributed import ProcessGroup, join
from harness.testing.toys import VOCABULARY, perturb, toy_model
from harness.training.optimiser import trained_parameters
from harness.training.packing import Layout
from harness.training.step import Stage, StepRunner
from harness.training.task_balance import TaskBalancing
from harness.training.task_gradients import TaskGradients

TASKS = ("one", "two", "three")
# method, train.loss, and the balancer of tasks
RUNS = (
    ("cgc_lora", "task", None),
    ("lora_single", "token", None),
    ("moa", "example", None),
    ("mola", "token", None),
    ("lora_all", "task", "famo"),
    ("multi_lora", "task", "pcgrad"),
)
STEPS = 20


def make_rows(step: int) -> list[Encoded]:
    """Five rows in most steps; one alone in every fourth, so that rank 1 has none."""
    draw = np.random.default_rng(step)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(t) for t in draw.integers(1, VOCABULARY, draw.integers(low, high)))

    n = 1 if step % 4 == 3 else 5
    return [
        Encoded(task=TASKS[draw.integers(3)], prompt=tokens(1, 20), target=tokens(1, 9), truncated=False)
        for _ in range(n)
    ]


def balancing(name: str) -> TaskBalancing:
    """A balancer with its default settings."""
    return TaskBalancing(balancer=balancer_class(name)())


def run(name: str, kind: str, balancer: str | None, processes: ProcessGroup) -> dict[str, Any]:
    """Loss, norm and task losses of each step, gradients of the first, of tasks in four, weights after the last."""
    method = method_class(name)()
    model = toy_model()
    adapter = method.attach(model, TASKS, seed=0)
    perturb(adapter)
    trained = trained_parameters(adapter, method)
    subject = BalancedStage(name="all", tasks=TASKS, epoch=2, seed=0)
    stage = Stage(
        name="all",
        steps=STEPS,
        key=(0,),
        reads=Trait.LABEL_FREE in method.traits,
        trained=trained,
        balance=None if balancer is None else balancing(balancer).weights(subject, lambda examples: []),
        combined=None if balancer is None else balancing(balancer).combined(subject, trained),
    )
    loaded = LoadedModel(
        model=model,
        tokenizer=None,
        device=torch.device("cpu"),
        dtype=torch.float64,
        n_parameters=0,
        max_context=128,
        encoder_decoder=False,
    )
    config = TrainConfig(loss=kind, micro_tokens=40, lr=1e-3)
    loop = StepRunner(loaded, adapter, config, stage, Layout(packed=True), processes)
    first: dict[str, Any] = {}

    def remember(optimiser: Any, *_: Any) -> None:
        if not first:
            first.update(
                {n: None if p.grad is None else p.grad.flatten().tolist() for n, p in stage.parameters.items()}
            )

    loop.optimiser.register_step_pre_hook(remember)
    of_tasks: list[list[float]] = []

    def keep(found: TaskGradients) -> None:
        if found.shared:
            of_tasks.append([*found.flat().flatten().tolist(), *found.losses[found.present].tolist()])

    model.train()
    results = [
        loop.step(
            step,
            make_rows(step),
            Routes(TASKS),
            stop=step == 7 and not processes.is_main,
            use=keep if step < 4 else None,
        )
        for step in range(STEPS)
    ]
    return {
        "task_gradients": of_tasks,
        "losses": [r.loss for r in results],
        "norms": [r.grad_norm for r in results],
        "tasks": [dict(r.by_task) for r in results],
        "stops": [i for i, r in enumerate(results) if r.stop],
        "gradients": first,
        "weights": {n: p.detach().flatten().tolist() for n, p in stage.parameters.items()},
    }


def main(arguments: Sequence[str]) -> None:
    """Write what every method and weighting gives, from rank 0."""
    torch.set_num_threads(1)
    processes = join()
    found = {name: run(name, kind, balancer, processes) for name, kind, balancer in RUNS}
    weights = {name: one["weights"] for name, one in found.items()}
    same = processes.broadcast(weights) == weights  # bit for bit
    if processes.is_main:
        Path(arguments[0]).write_text(json.dumps({"world_size": processes.world_size, "runs": found}))
    processes.leave()
    sys.exit(0 if same else 3)


if __name__ == "__main__":
    main(sys.argv[1:])
