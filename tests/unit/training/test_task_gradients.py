"""The gradients of single tasks, from one backward pass, are those of a backward pass for each task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_steps import PACKED, PADDED, ROUTES, TASKS, gradients, make_sequences, make_steps

from harness.data.encoding import Encoded
from harness.method import TaskParts
from harness.registry import method_class
from harness.training.attention import checkpoint_activations
from harness.training.batch import token_losses, weigh
from harness.training.optimiser import TrainedParameter
from harness.training.packing import Layout
from harness.training.step import StepRunner
from harness.training.task_gradients import TaskGradients, shared_parameters

pytestmark = pytest.mark.numeric

CLOSE = 1e-6  # the toy computes in float64, but its norms in float32

# Methods whose shared parameters are all used in products with tokens, or with rows of the tasks.
IN_ONE_PASS = (
    "lora_all",
    "moe_lora",
    "cgc_lora",
    "c_poly",
    "mtl_lora",
    "hydra_lora",
    "mola",
    "lora_moe",
    "adamole",
    "align_lora",
)
IN_ANOTHER_PASS = ("multi_lora",)


def by_task(steps: StepRunner, sequences: Sequence[Encoded], number: int = 4) -> TaskGradients:
    """The task gradients of a step."""
    found: list[TaskGradients] = []
    steps.loaded.model.train()
    steps.step(number, sequences, ROUTES, use=found.append)
    steps.loaded.model.eval()
    return found[0]


def one_task_at_a_time(steps: StepRunner, sequences: Sequence[Encoded], kind: str) -> dict[str, list[Tensor]]:
    """By parameter and task, the gradient of the task's share of the loss: a backward pass for each sequence."""
    adapter, model = steps.adapter, steps.loaded.model
    names = list(steps.stage.parameters)
    found = {n: [torch.zeros_like(p) for _ in TASKS] for n, p in steps.stage.parameters.items()}
    model.train()
    adapter.begin_step(steps.stage.name, 4)
    for weighted in weigh(sequences, kind, ROUTES):
        batch = PADDED.collate([weighted], steps.loaded)
        with adapter.route(batch.routes, batch.examples):
            loss = (token_losses(model, adapter, batch, steps.stage.reads) * batch.weights).sum()
            parts = torch.autograd.grad(loss, list(steps.stage.parameters.values()), allow_unused=True)
        for name, part in zip(names, parts, strict=True):
            if part is not None:
                found[name][weighted.task] += part
    model.eval()
    return found


def make(toy_llama: Callable[..., Any], name: str, layout: Layout, **config: Any) -> StepRunner:
    return make_steps(toy_llama(), method_class(name)(), layout, **config)


@pytest.mark.parametrize("name", [*IN_ONE_PASS, *IN_ANOTHER_PASS])
@pytest.mark.parametrize("layout", [PACKED, PADDED], ids=["packed", "padded"])
def test_task_gradients_are_those_of_separate_backward_passes(
    toy_llama: Callable[..., Any], name: str, layout: Layout
) -> None:
    sequences = make_sequences()
    steps = make(toy_llama, name, layout, loss="example", micro_tokens=90)
    expected = one_task_at_a_time(steps, sequences, "example")
    found = by_task(steps, sequences)
    assert {s.name for s in found.shared}
    assert found.in_one_pass is (name in IN_ONE_PASS)
    for shared in found.shared:
        for task in range(len(TASKS)):
            whole = shared.part(expected[shared.name][task])
            assert float(whole.abs().max()) > 1e-7, shared.name
            torch.testing.assert_close(found.by_name[shared.name][task], whole, rtol=CLOSE, atol=CLOSE * 1e-2)


def test_padded_ranks_are_observed_as_the_true_ones_are(toy_llama: Callable[..., Any]) -> None:
    sequences, found = make_sequences(), []
    for multiple in (None, 8):
        steps = make(toy_llama, "cgc_lora", PACKED)
        adapter: Any = steps.adapter
        adapter.current_route.rank_multiple = multiple  # The rank of ten experts of rank 2 is padded from 20 to 24.
        found.append(by_task(steps, sequences))
    plain, padded = found
    assert plain.in_one_pass
    assert padded.in_one_pass
    for name, gradient in plain.by_name.items():
        torch.testing.assert_close(padded.by_name[name], gradient, rtol=CLOSE, atol=CLOSE * 1e-2)


@pytest.mark.long
@pytest.mark.parametrize("name", ["lora_all", "cgc_lora", "mola", "align_lora", "multi_lora"])
def test_a_step_that_gives_task_gradients_is_the_same_step_bit_for_bit(
    toy_llama: Callable[..., Any], name: str
) -> None:
    method, sequences, found = method_class(name)(dropout=0.2), make_sequences(), []
    for asked in (False, True):
        steps, of_tasks = make_steps(toy_llama(), method, PACKED, micro_tokens=70, lr=1e-2), list[TaskGradients]()
        steps.loaded.model.train()
        for number in range(3):
            result = steps.step(number, sequences, ROUTES, use=of_tasks.append if asked else None)
        found.append((result.loss, result.grad_norm, {n: p.detach() for n, p in steps.stage.parameters.items()}))
        assert len(of_tasks) == (3 if asked else 0)
    assert found[0][:2] == found[1][:2]
    for parameter, value in found[0][2].items():
        assert torch.equal(value, found[1][2][parameter]), parameter


@pytest.mark.long
@pytest.mark.parametrize("name", ["lora_all", "cgc_lora"])
def test_the_tasks_shares_add_up_to_the_gradient_of_the_step(toy_llama: Callable[..., Any], name: str) -> None:
    sequences = make_sequences()
    whole = gradients(make(toy_llama, name, PACKED, loss="task"), sequences)[1]
    found = by_task(make(toy_llama, name, PADDED, loss="task", micro_tokens=50), sequences)
    for shared in found.shared:
        expected = whole[shared.name]
        assert expected is not None
        torch.testing.assert_close(
            found.by_name[shared.name].sum(0), shared.part(expected), rtol=CLOSE, atol=CLOSE * 1e-2
        )
    assert found.shares.tolist() == pytest.approx([1 / 3] * 3)
    result = make(toy_llama, name, PADDED, loss="task").step(4, sequences, ROUTES)
    assert found.losses.tolist() == pytest.approx([result.by_task[t] for t in TASKS], abs=CLOSE)
    assert found.flat().shape == (3, sum(v[0].numel() for v in found.by_name.values()))


@pytest.mark.long
def test_gradient_checkpointing_changes_no_task_gradient(toy_llama: Callable[..., Any]) -> None:
    sequences, found = make_sequences(), []
    for name in ("lora_all", "mola"):  # mola has a penalty, and so two backward passes
        for checkpointed in (False, True):
            steps = make(toy_llama, name, PACKED, micro_tokens=70)
            if checkpointed:
                checkpoint_activations(steps.loaded.model, True, steps.checkpoint_contexts)
            found.append(by_task(steps, sequences))
            assert found[-1].in_one_pass
        torch.testing.assert_close(found[-1].flat(), found[-2].flat(), rtol=CLOSE, atol=CLOSE * 1e-2)


def test_a_task_without_examples_in_the_step_has_no_gradient(toy_llama: Callable[..., Any]) -> None:
    found = by_task(make(toy_llama, "lora_all", PACKED), [s for s in make_sequences() if s.task != "two"])
    assert found.present == [0, 2]
    assert found.shares[1] == 0
    assert not found.flat()[1].any()
    assert found.flat()[0].any()


def test_a_repeated_attempt_after_running_out_of_memory_counts_no_gradient_twice(
    toy_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = make_sequences()
    whole = by_task(make(toy_llama, "lora_all", PACKED, micro_tokens=1000), sequences)
    steps = make(toy_llama, "lora_all", PACKED, micro_tokens=80)
    forward, calls = type(steps.loaded.model).forward, []

    def limited(model: Any, input_ids: Tensor, **kwargs: Any) -> Any:
        calls.append(input_ids.numel())
        if len(calls) == 2:
            raise torch.OutOfMemoryError("a toy's memory")
        return forward(model, input_ids, **kwargs)

    monkeypatch.setattr(type(steps.loaded.model), "forward", limited)
    found = by_task(steps, sequences)
    assert steps.division.micro_tokens < 80
    torch.testing.assert_close(found.flat(), whole.flat(), rtol=CLOSE, atol=CLOSE * 1e-2)


def test_a_combined_gradient_replaces_the_sum_over_tasks_and_leaves_penalty_and_task_parts(
    toy_llama: Callable[..., Any],
) -> None:
    sequences = make_sequences()
    for name in ("mola", "cgc_lora"):
        plain = gradients(make(toy_llama, name, PACKED), sequences)[1]
        of_tasks: list[TaskGradients] = []

        def double(found: TaskGradients, of_tasks: list[TaskGradients] = of_tasks) -> None:
            of_tasks.append(found)
            found.replace(2 * found.flat().sum(0))

        steps = make(toy_llama, name, PACKED)
        changed = gradients(steps, sequences, use=double)[1]
        for shared in of_tasks[0].shared:
            added = torch.zeros_like(shared.parameter)
            index = torch.arange(added.shape[shared.dim]) if shared.index is None else shared.index
            added.index_add_(shared.dim, index, of_tasks[0].by_name[shared.name].sum(0))
            torch.testing.assert_close(changed[shared.name], plain[shared.name] + added)
        others = plain.keys() - {s.name for s in of_tasks[0].shared}
        assert all(torch.equal(changed[n], plain[n]) for n in others)


def test_the_parts_of_single_tasks_are_not_shared() -> None:
    parameter = nn.Parameter(torch.arange(12.0).view(4, 3))
    trained = {
        "whole": TrainedParameter(parameter=parameter),
        "some": TrainedParameter(parameter=parameter, parts=TaskParts(dim=0, tasks=(None, 0, None, 1))),
        "none": TrainedParameter(parameter=parameter, parts=TaskParts(dim=1, tasks=(0, 1, 2))),
    }
    whole, some = shared_parameters(trained)
    assert (whole.name, some.name) == ("whole", "some")
    assert torch.equal(whole.part(parameter), parameter)
    assert torch.equal(some.part(parameter), parameter[[0, 2]])
