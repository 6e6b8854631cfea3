"""A route's gate weights are computed once while nothing can change them, and computed again after a change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_net import LABELS, TASKS, Net, inputs

from harness.testing.toys import TASKS as MOA_TASKS
from harness.testing.toys import perturb, toy_model
from methods.base import Gate, LoRAAdapter, LoRAMethod
from methods.c_poly import CPoly
from methods.cgc_lora import CGCLoRA
from methods.lorahub import LoRAHub
from methods.moa import MoA, MoAAdapter
from methods.moe_lora import MoELoRA

pytestmark = pytest.mark.numeric

METHODS = [
    CGCLoRA(),
    CGCLoRA(gate="logits", gate_scope="model"),
    MoELoRA(rank=8, n_experts=4),
    CPoly(rank=2),
    CPoly(rank=2, variant="poly", n_splits=4),
    LoRAHub(rank=2),
]
IDS = ["cgc", "cgc logits", "moe", "c_poly", "mhr", "hub"]
ROUTE = torch.tensor(LABELS)


def attached(method: LoRAMethod) -> tuple[Any, LoRAAdapter]:
    net = Net().eval()
    adapter = method.attach(net, TASKS, seed=0)
    perturb(adapter)
    for module in adapter.modules.values():
        for tensor in (*module.parameters(), *module.buffers()):
            torch.manual_seed(tensor.numel())
            with torch.no_grad():
                tensor.add_(0.3 * torch.rand_like(tensor))
    return net, adapter


def gates(adapter: LoRAAdapter) -> list[Gate]:
    return [module for module in adapter.modules.values() if isinstance(module, Gate)]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Gate]:
    """The gates that made their weights, in order."""
    seen: list[Gate] = []
    for kind in (Gate, *Gate.__subclasses__()):
        if "label_weights" in vars(kind):
            monkeypatch.setattr(kind, "label_weights", counted(kind.label_weights, seen))
    return seen


def counted(compute: Callable[..., Tensor], seen: list[Gate]) -> Callable[..., Tensor]:
    def with_count(self: Gate, route: Any) -> Tensor:
        seen.append(self)
        return compute(self, route)

    return with_count


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_the_layers_of_a_decoded_token_make_no_weights(method: LoRAMethod, made: list[Gate]) -> None:
    net, adapter = attached(method)
    x = inputs()
    with adapter.route(ROUTE):
        expected = net(x).detach()
        made.clear()
        with torch.no_grad():
            for _ in range(3):
                assert torch.equal(net(x), expected)
        assert sorted(map(id, made)) == sorted(map(id, gates(adapter)))
    made.clear()
    with adapter.route(ROUTE), torch.no_grad():
        net(x)
    assert len(made) == len(gates(adapter)), "another route makes its own"


def written(adapter: LoRAAdapter, module: nn.Module, name: str, tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.mul_(-0.5)


def written_in_a_view(adapter: LoRAAdapter, module: nn.Module, name: str, tensor: Tensor) -> None:
    with torch.no_grad():
        tensor[0].copy_(tensor[0] * -0.5)


def replaced(adapter: LoRAAdapter, module: nn.Module, name: str, tensor: Tensor) -> None:
    made = -0.5 * tensor.detach()
    setattr(module, name, nn.Parameter(made) if isinstance(tensor, nn.Parameter) else made)


def exchanged(adapter: LoRAAdapter, module: nn.Module, name: str, tensor: Tensor) -> None:
    tensor.data = -0.5 * tensor.data  # as module.to does it


def replaced_in_place(adapter: LoRAAdapter, module: nn.Module, name: str, tensor: Tensor) -> None:
    same = nn.Parameter(tensor.data) if isinstance(tensor, nn.Parameter) else tensor.data
    setattr(module, name, same)
    with torch.no_grad():
        same.mul_(-0.5)
        while same._version < tensor._version:
            same.add_(0)


def loaded(adapter: LoRAAdapter, module: nn.Module, name: str, tensor: Tensor) -> None:
    adapter.load_state_dict({name: -0.5 * value for name, value in adapter.state_dict().items()})


def stepped(adapter: LoRAAdapter, module: nn.Module, name: str, tensor: Tensor) -> None:
    tensor.grad = tensor.detach().clone()
    torch.optim.SGD([tensor], lr=1.5).step()


@pytest.mark.long
@pytest.mark.parametrize(
    "change", [written, written_in_a_view, replaced, replaced_in_place, exchanged, loaded, stepped]
)
@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_weights_follow_their_tensors_inside_of_a_route(method: LoRAMethod, change: Callable[..., None]) -> None:
    net, adapter = attached(method)
    x = inputs()
    with adapter.route(ROUTE):
        with torch.no_grad():
            before = net(x)
        gate = gates(adapter)[0]
        module, name, tensor = next(
            (module, name, tensor)
            for module in gate.modules()
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            if name != "eye"
        )
        if change is stepped and not isinstance(tensor, nn.Parameter):
            pytest.skip("searched weights are no parameters")
        change(adapter, module, name, tensor)
        with torch.no_grad():
            after = net(x)
        assert torch.equal(after, net(x).detach())
    assert (after - before).abs().max() > 1e-6


def test_storage_that_comes_back_to_the_same_place_is_not_mistaken_for_the_old() -> None:
    net, adapter = attached(CGCLoRA(gate="logits", targets="first"))
    x, logits = inputs(), adapter.trainable()["first.gate.scores.logits"]
    with torch.no_grad(), adapter.route(ROUTE):
        for factor in range(20):
            for power in (1, 2):
                logits.data = (0.1 * torch.arange(24, dtype=torch.float64) * factor**power).view(3, 8)
            kept = net(x)
            with torch.enable_grad():
                assert torch.equal(kept, net(x).detach())


def test_a_route_entered_again_or_written_to_has_its_own_weights() -> None:
    net, adapter = attached(CGCLoRA())
    x = inputs()
    labels, outs = [torch.tensor(LABELS), torch.tensor([0, 1, 2, 2])], []
    for route in (labels[0], labels[1], labels[0]):
        with adapter.route(route):
            with torch.no_grad():
                outs.append(net(x))
            assert torch.equal(outs[-1], net(x).detach())
    assert torch.equal(outs[0], outs[2])
    assert (outs[0] - outs[1]).abs().max() > 1e-6
    with torch.no_grad(), adapter.route(labels[0]):
        labels[0].copy_(labels[1])
        for gradients in (False, True):  # An open route keeps the labels that it was entered with.
            with torch.set_grad_enabled(gradients):
                assert torch.equal(net(x).detach(), outs[0])
    with torch.no_grad(), adapter.route(labels[0]):
        assert torch.equal(net(x), outs[1])


def test_a_pass_aside_has_weights_of_its_own() -> None:
    net, adapter = attached(CGCLoRA())
    x = inputs()
    with torch.no_grad(), adapter.route(ROUTE):
        before = net(x)
        with adapter.current_route.nested(torch.tensor([1, 1, 2, 2])):
            aside = net(x)
        assert torch.equal(net(x), before)
    with torch.no_grad(), adapter.route(torch.tensor([1, 1, 2, 2])):
        assert torch.equal(net(x), aside)


@pytest.mark.parametrize("method", METHODS[:5], ids=IDS[:5])
def test_gradients_reach_the_gate_after_a_forward_without(method: LoRAMethod) -> None:
    grads = []
    for look in (False, True):
        net, adapter = attached(method)
        with adapter.route(ROUTE):
            if look:
                with torch.no_grad():
                    net(inputs())
            net(inputs()).pow(2).sum().backward()
        grads.append([p.grad for n, p in adapter.trainable().items() if "gate" in n or "embedding" in n])
    assert grads[0]
    assert all(grad is not None and grad.any() for grad in grads[0])
    assert all(map(torch.equal, *grads))


def test_training_draws_its_noise_whatever_was_seen_before() -> None:
    net, adapter = attached(CPoly(rank=2))
    x = inputs()
    with torch.no_grad(), adapter.route(ROUTE):
        quiet = net(x)
        net.train()
        noisy = []
        for step in (1, 2):
            adapter.begin_step("all", step)
            noisy.append(net(x))
        net.eval()
        assert torch.equal(net(x), quiet)
    assert (noisy[0] - quiet).abs().max() > 1e-6
    assert (noisy[0] - noisy[1]).abs().max() > 1e-6


def test_inference_mode_keeps_nothing_that_it_cannot_watch() -> None:
    with torch.inference_mode():
        net, adapter = attached(CGCLoRA(gate="logits", targets="first"))
        with adapter.route(ROUTE):
            before = net(inputs())
            adapter.trainable()["first.gate.scores.logits"].mul_(torch.arange(8))
            assert (net(inputs()) - before).abs().max() > 1e-6


def test_the_weights_of_tokens_are_made_anew_by_every_forward(made: list[Gate]) -> None:
    net, adapter = attached(CGCLoRA())
    with torch.no_grad(), adapter.route(ROUTE[:, None].expand(4, 3)):
        for forwards in (1, 2):
            net(inputs())
            assert len(made) == forwards * len(gates(adapter))


def test_a_mixture_by_prompts_is_of_the_last_read(made: list[Gate]) -> None:
    model: Any = toy_model()
    adapter = MoA(rank=2, soft=True).attach(model, list(MOA_TASKS), seed=0)
    perturb(adapter)
    assert isinstance(adapter, MoAAdapter)
    with torch.no_grad():
        adapter.routers.weight.mul_(20)
    ids, outs = torch.arange(8).view(2, 4), []
    reads = [[torch.tensor([5, 6, 7]), torch.tensor([8, 9])], [torch.tensor([3]), torch.tensor([1, 2])]]
    with adapter.route(torch.tensor([0, 0])):
        for prompts in (*reads, reads[0]):
            made.clear()
            with torch.no_grad():
                adapter.read(prompts, torch.arange(2))
                outs.append([model(input_ids=ids).logits for _ in range(2)])
            assert len(made) == 2, "one for each block"
            assert torch.equal(outs[-1][1], model(input_ids=ids).logits.detach())
    assert torch.equal(outs[0][1], outs[2][1])
    assert (outs[0][1] - outs[1][1]).abs().max() > 1e-6
    with torch.no_grad(), adapter.route(torch.tensor([0, 0])), pytest.raises(RuntimeError, match="without prompts"):
        model(input_ids=ids)
