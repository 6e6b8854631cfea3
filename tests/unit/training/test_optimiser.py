"""The optimiser leaves the parts of absent tasks as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toy_steps import PADDED, ROUTES, TASKS, make_sequences, make_steps

from harness.config.spec import TrainConfig
from harness.method import TaskParts
from harness.testing.toys import VOCABULARY, toy_model
from harness.training.optimiser import TaskAdamW, TrainedParameter
from methods.c_poly import CPoly
from methods.cgc_lora import CGCLoRA

pytestmark = pytest.mark.numeric

PRESENT = [{0, 1}, {0}, {1}, {0}, {0, 1}, {1}]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def separate(start: Tensor, dim: int, config: TrainConfig) -> Tensor:
    """The same steps by PyTorch's AdamW on one parameter for each part: shared, task 0, task 1."""
    owners = [None, 0, 1]
    parts = [nn.Parameter(part.clone()) for part in torch.split(start, 2, dim)]
    optimiser = torch.optim.AdamW(parts, lr=config.lr, weight_decay=config.weight_decay)
    for step, present in enumerate(PRESENT):
        gradients = torch.split(drawn(*start.shape, seed=step), 2, dim)
        for part, owner, gradient in zip(parts, owners, gradients, strict=True):
            part.grad = gradient.clone() if owner is None or owner in present else None
        optimiser.step()
    return torch.cat([part.detach() for part in parts], dim)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_parts_are_trained_as_if_each_were_a_parameter_without_gradient_in_steps_without_its_task(
    dim: int, decay: float
) -> None:
    start = drawn(*((6, 3) if dim == 0 else (3, 6)), seed=99)
    config = TrainConfig(lr=1e-2, weight_decay=decay)
    parameter = nn.Parameter(start.clone())
    parts = TaskParts(dim=dim, tasks=(None, None, 0, 0, 1, 1))
    optimiser = TaskAdamW([TrainedParameter(parameter=parameter, parts=parts)], config)
    for step, present in enumerate(PRESENT):
        gradient = drawn(*start.shape, seed=step)
        for index, task in enumerate(parts.tasks):
            if task is not None and task not in present:
                gradient.select(dim, index).zero_()
        parameter.grad, optimiser.present = gradient, frozenset(present)
        optimiser.step()
    assert (parameter - separate(start, dim, config)).abs().max() < 1e-12


def test_a_parameter_of_one_task_keeps_values_and_moments_in_steps_without_the_task() -> None:
    parameter = nn.Parameter(drawn(2, 3, seed=1))
    optimiser = TaskAdamW(
        [TrainedParameter(parameter=parameter, parts=TaskParts(dim=0, tasks=(1, 1)))], TrainConfig(lr=1e-2)
    )
    parameter.grad, optimiser.present = torch.ones_like(parameter), frozenset({1})
    optimiser.step()
    before = parameter.detach().clone()
    parameter.grad, optimiser.present = torch.zeros_like(parameter), frozenset({0})
    optimiser.step()
    assert torch.equal(parameter, before)


@pytest.mark.parametrize(
    "method", [CGCLoRA(expert_rank=2), CGCLoRA(expert_rank=2, gate="logits"), CPoly(rank=2, variant="simple")], ids=str
)
def test_a_step_without_a_task_leaves_its_parts_and_their_moments_as_they_are(method: CGCLoRA | CPoly) -> None:
    steps = make_steps(toy_model(), method, PADDED)
    rows = make_sequences(12, vocabulary=VOCABULARY)
    steps.step(0, rows, ROUTES)
    parts = steps.adapter.task_parts()
    before, state = steps.adapter.state_dict(), {k: v.clone() for k, v in steps.state().items()}
    steps.step(1, [row for row in rows if row.task != TASKS[2]], ROUTES)
    assert parts
    for name, of in parts.items():
        absent = torch.tensor([i for i, task in enumerate(of.tasks) if task == 2])
        used = torch.tensor([i for i, task in enumerate(of.tasks) if task == 1])
        after = steps.adapter.state_dict()[name]
        for tensors in [
            (before[name], after),
            *((state[f"{name}/{k}"], steps.state()[f"{name}/{k}"]) for k in ("exp_avg", "exp_avg_sq")),
        ]:
            old, new = (tensor.index_select(of.dim, absent) for tensor in tensors)
            assert torch.equal(old, new), name
        assert not torch.equal(before[name].index_select(of.dim, used), after.index_select(of.dim, used)), name
