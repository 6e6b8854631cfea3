"""Weights that are computed for all layers together are those that each layer computes alone."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from toy_net import TASKS, Net, inputs

from harness.testing.toys import perturb
from methods.base import Gate, LoRAAdapter, LoRAMethod
from methods.c_poly import CPoly
from methods.cgc_lora import CGCLoRA
from methods.moe_lora import MoELoRA
from methods.mtl_lora import MTLLoRA

METHODS = [
    CGCLoRA(),
    CGCLoRA(gate="logits", gate_softmax="separate"),
    CGCLoRA(gate_scope="model"),
    MoELoRA(),
    MoELoRA(gate="uniform"),
    CPoly(rank=2),
    CPoly(rank=2, noise="task"),
    CPoly(rank=2, variant="poly", n_common=4, n_splits=4),
    MTLLoRA(rank=4),
    MTLLoRA(rank=4, task_map="diagonal"),
    MTLLoRA(rank=4, gate="uniform"),
]
LABELS = torch.tensor([[2, 2, 0], [0, 1, 1], [2, 0, 0], [1, 1, 1]])
EXAMPLES = torch.tensor([[0, 0, 1], [1, 2, 2], [3, 4, 4], [5, 5, 5]])


def gradients(method: LoRAMethod, *, alone: bool, checkpointed: bool = False) -> Mapping[str, Tensor]:
    """Of every parameter, by a net in training; alone: each layer computes its own weights."""
    net = Net()
    adapter = method.attach(net, TASKS, seed=0)
    perturb(adapter)
    net.train()
    adapter.begin_step("all", 1)
    with adapter.route(LABELS, EXAMPLES):
        if alone:
            drop_prepared(adapter)
        x = inputs().requires_grad_()
        out = checkpoint(net, x, use_reentrant=False) if checkpointed else net(x)
        out.square().sum().backward()
    return {name: p.grad for name, p in adapter.trainable().items() if p.grad is not None}


def drop_prepared(adapter: LoRAAdapter) -> None:
    for module in adapter.modules.values():
        if isinstance(module, Gate):
            module.prepared = None
    for layer in adapter.layers.values():
        layer.prepared = None


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_gradients_are_those_of_weights_that_each_layer_computes(method: LoRAMethod) -> None:
    together, alone = gradients(method, alone=False), gradients(method, alone=True)
    assert together.keys() == alone.keys()
    for name, expected in alone.items():
        assert torch.allclose(together[name], expected, rtol=1e-10, atol=1e-12), name
    for name, repeated in gradients(method, alone=False, checkpointed=True).items():
        assert torch.equal(repeated, together[name]), name


def test_a_second_forward_on_the_same_route_has_a_graph_of_its_own() -> None:
    net = Net().eval()
    adapter = CGCLoRA().attach(net, TASKS, seed=0)
    perturb(adapter)
    with adapter.route(LABELS, EXAMPLES):
        for _ in range(2):
            net(inputs()).square().sum().backward()
    twice = {name: p.grad for name, p in adapter.trainable().items()}
    for name, once in gradients(CGCLoRA(), alone=False).items():
        assert torch.allclose(twice[name], 2 * once, rtol=1e-10, atol=1e-12), name


def test_weights_of_parameters_that_have_changed_since_are_not_used() -> None:
    net = Net().eval()
    adapter = CGCLoRA(gate="logits").attach(net, TASKS, seed=0)
    perturb(adapter)
    logits = [p for name, p in adapter.trainable().items() if name.endswith("logits")]
    with adapter.route(LABELS, EXAMPLES):
        with torch.no_grad():
            for parameter in logits:
                parameter.copy_(torch.arange(parameter.numel()).view_as(parameter) % 3)
        changed = net(inputs()).detach()
    with adapter.route(LABELS, EXAMPLES):
        assert torch.allclose(net(inputs()), changed, atol=1e-12)
