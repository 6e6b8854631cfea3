"""Ranks that are padded where the device has slow kernels for others: the same gradients, in aligned products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from toy_net import TASKS, Net, inputs

from harness.testing.toys import perturb
from methods.align_lora import AlignLoRA
from methods.base import LoRAMethod
from methods.c_poly import CPoly
from methods.cgc_lora import CGCLoRA
from methods.layers.casting import cast_one, padded_experts, rank_multiple
from methods.layers.routing import Route
from methods.lora_all import LoRAAll
from methods.lora_single import LoRASingle
from methods.mola import MoLA
from methods.multi_lora import MultiLoRA

pytestmark = pytest.mark.numeric

OF_TOKENS = torch.tensor([[2, 2, 0], [0, 1, 1], [2, 0, 0], [1, 1, 1]])
OF_SEQUENCES = torch.tensor([2, 0, 1, 0])
OF_ONE_TASK = torch.full((4, 3), 1)

METHODS = [
    LoRAAll(rank=3),
    LoRASingle(rank=3),
    CGCLoRA(n_common=2, expert_rank=2),
    CGCLoRA(n_common=2, expert_rank=3, gate="logits"),
    CPoly(rank=3, noise="task"),
    CPoly(rank=2, variant="poly", n_common=5, n_splits=4),
    MoLA(expert_rank=3),
    MultiLoRA(n_loras=2, expert_rank=3),
    AlignLoRA(rank=3),
]


class InnerRanks(TorchFunctionMode):
    """Collects the inner sizes of all products with matrices that are smaller than the net's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.addmm_:
            self.found.append(args[2].shape[0])
        return func(*args, **(kwargs or {}))


def gradients(method: LoRAMethod, labels: Tensor, multiple: int | None) -> tuple[dict[str, Tensor], list[int]]:
    """Of every parameter, and the ranks of the second products."""
    net = Net()
    adapter = method.attach(net, TASKS, seed=0)
    adapter.current_route.rank_multiple = multiple
    perturb(adapter)
    net.train()
    adapter.begin_step("all", 1)
    with adapter.route(labels), InnerRanks() as ranks:
        out = net(inputs().requires_grad_())
        (out.square().sum() + adapter.penalty()).backward()
    return {name: p.grad for name, p in adapter.trainable().items() if p.grad is not None}, ranks.found


@pytest.mark.parametrize("labels", [OF_TOKENS, OF_SEQUENCES, OF_ONE_TASK], ids=["tokens", "sequences", "one task"])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_padded_ranks_give_the_gradients_of_the_true_ones(method: LoRAMethod, labels: Tensor) -> None:
    padded, ranks = gradients(method, labels, 8)
    plain, true_ranks = gradients(method, labels, None)
    assert padded.keys() == plain.keys()
    for name, gradient in plain.items():
        assert padded[name].shape == gradient.shape
        assert torch.allclose(padded[name], gradient, rtol=1e-10, atol=1e-12), name
    assert all(rank % 8 == 0 for rank in ranks)
    assert len(ranks) == len(true_ranks)


def test_a_rank_that_is_no_multiple_is_what_would_be_padded() -> None:
    _, ranks = gradients(CGCLoRA(n_common=2, expert_rank=3, gate="logits"), OF_TOKENS, None)
    assert set(ranks) == {15}
    _, ranks = gradients(CGCLoRA(n_common=2, expert_rank=3, gate="logits"), OF_TOKENS, 8)
    assert set(ranks) == {24}


def test_experts_are_added_until_the_sum_of_their_ranks_is_a_multiple() -> None:
    assert padded_experts(23, 2, 8) == 24
    assert padded_experts(5, 3, 8) == 8
    assert padded_experts(15, 6, 8) == 16
    assert padded_experts(7, 16, 8) == 7
    assert padded_experts(7, 3, 1) == 7


def test_only_half_precision_on_a_gpu_in_training_is_padded() -> None:
    route, gpu, cpu = Route(1), torch.device("cuda"), torch.device("cpu")
    assert rank_multiple(route, gpu, torch.bfloat16) == 8
    assert rank_multiple(route, gpu, torch.float16) == 8
    assert rank_multiple(route, gpu, torch.float32) == 1
    assert rank_multiple(route, cpu, torch.bfloat16) == 1
    with torch.no_grad():
        assert rank_multiple(route, gpu, torch.bfloat16) == 1


def test_on_a_cpu_the_parameters_themselves_are_multiplied() -> None:
    a, b = nn.Parameter(torch.ones(3, 5)), nn.Parameter(torch.ones(7, 3))
    cast = cast_one(a, b, torch.ones(2, 5), Route(1))
    assert cast.a is a
    assert cast.b is b
