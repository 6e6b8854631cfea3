"""Attaching, merging, initial values and errors of an adapter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_net import TASKS, Net, inputs

from harness.errors import HarnessError, UsageError
from harness.method import BaseRouting, LoRAFactors
from harness.testing.toys import perturb
from methods.cgc_lora import CGCLoRA
from methods.lora_all import LoRAAll
from methods.lora_single import LoRASingle

pytestmark = pytest.mark.numeric


@pytest.fixture
def x() -> Tensor:
    return inputs()


def test_merged_weights_come_back_bit_for_bit_and_tied_ones_never_change(x: Tensor) -> None:
    net: Any = Net()
    net.tied = nn.Embedding(12, 8)
    net.tied.weight = net.first.weight
    before = net.first.weight.clone()
    adapter = LoRAAll().attach(net, TASKS, seed=0)
    perturb(adapter)
    with adapter.apply(adapter.fold("a"), merge=True):
        assert not torch.equal(net.first.weight, before)
        assert torch.equal(net.tied.weight, before)
    assert net.first.weight is net.tied.weight
    assert torch.equal(net.first.weight, before)


def test_merging_into_bf16_is_refused_and_the_adapter_stays_usable(x: Tensor) -> None:
    net = Net().to(torch.bfloat16)
    adapter = LoRAAll().attach(net, TASKS, seed=0)
    with (
        pytest.raises(ValueError, match=r"first is torch.bfloat16.*merge=False"),
        adapter.apply(adapter.fold("a"), merge=True),
    ):
        pass
    with adapter.apply(adapter.fold("a"), merge=False):
        assert net(x.bfloat16()).dtype == torch.bfloat16


def test_factors_that_do_not_fit_are_refused_by_name() -> None:
    net = Net()
    adapter = LoRAAll().attach(net, TASKS, seed=0)
    with (
        pytest.raises(ValueError, match="not adapted: third"),
        adapter.apply({"third": LoRAFactors(a=torch.ones(1, 8), b=torch.ones(12, 1))}, merge=False),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"first: factors a \(1, 9\)"),
        adapter.apply({"first": LoRAFactors(a=torch.ones(1, 9), b=torch.ones(12, 1))}, merge=False),
    ):
        pass


def test_a_task_s_lora_starts_as_the_one_lora_for_all() -> None:
    one = LoRAAll(rank=4).attach(Net(), TASKS, seed=7).state_dict()
    own = LoRASingle(rank=4).attach(Net(), TASKS, seed=7).state_dict()
    for module in ("first", "second"):
        for task in TASKS:
            assert torch.equal(own[f"{module}.A.{task}"], one[f"{module}.A"])
    bound = 1 / math.sqrt(8)
    assert one["first.A"].abs().max() <= bound
    assert one["first.A"].std() == pytest.approx(bound / math.sqrt(3), rel=0.25)
    assert not one["first.B"].any()


def test_an_expert_s_start_depends_on_no_other_expert_task_or_module() -> None:
    small = CGCLoRA(n_common=2, targets="second").attach(Net(), ["a", "d"], seed=7).state_dict()
    large = CGCLoRA(n_common=3).attach(Net(), TASKS, seed=7).state_dict()
    assert torch.equal(small["second.A"][:4], large["second.A"][:4])
    assert torch.equal(small["second.A"][6:8], large["second.A"][10:12])  # the own expert of "d"
    assert torch.equal(small["embedding.weight"][1], large["embedding.weight"][2])
    assert not torch.equal(large["second.A"][:2], large["second.A"][2:4])


def test_a_route_that_does_not_fit_is_an_error(x: Tensor) -> None:
    net = Net()
    adapter = CGCLoRA().attach(net, TASKS, seed=0)
    with (
        adapter.route(torch.tensor([0, 1, 2, 0, 1])),
        pytest.raises(RuntimeError, match="5 labels, which do not divide the 12 vectors"),
    ):
        net(x)
    for labels, message in (
        ([0, 3], "labels are 0..3, but the tasks are 0..2"),
        ([-1, 0], "labels are -1..0"),
        ([], "LongTensor"),
        ([0.5], "float32"),
    ):
        with pytest.raises(ValueError, match=message), adapter.route(torch.tensor(labels)):
            pass
    with pytest.raises(RuntimeError, match="first: forward without a route"):
        net(x)


def test_an_adapted_model_takes_no_second_adapter() -> None:
    net = Net()
    adapter = LoRAAll().attach(net, TASKS, seed=0)
    with pytest.raises(HarnessError, match=r"already has an adapter \(at first\)"):
        CGCLoRA().attach(net, TASKS, seed=0)
    adapter.detach()
    CGCLoRA().attach(net, TASKS, seed=0)


def test_targets_name_layers_by_their_end_or_by_a_pattern() -> None:
    net = nn.ModuleDict({"x": Net(), "y": Net()})
    found = {}
    for targets in ("all", "first", "x.first, second", "y.*"):
        adapter = LoRAAll(targets=targets).attach(net, TASKS, seed=0)
        found[targets] = sorted(adapter.fold("a"))
        adapter.detach()
    assert found["all"] == ["x.first", "x.second", "y.first", "y.second"]
    assert found["first"] == ["x.first", "y.first"]
    assert found["x.first, second"] == ["x.first", "x.second", "y.second"]
    assert found["y.*"] == ["y.first", "y.second"]
    with pytest.raises(UsageError, match=r"unknown linear layer 'frist'\. Did you mean 'first'"):
        LoRAAll(targets="frist").attach(net, TASKS, seed=0)
    with pytest.raises(UsageError, match=r"no linear layer matches the pattern 'x\.\*\|y\.\*'.*by commas.*x\.first"):
        LoRAAll(targets="x.*|y.*").attach(net, TASKS, seed=0)


def test_a_routing_without_an_adapter_is_the_base_model_in_every_context(x: Tensor) -> None:
    net = Net()
    expected = net(x)
    adapter = LoRAAll().attach(net, TASKS, seed=0)
    perturb(adapter)
    base = BaseRouting(adapter.off)
    for context in (base.route(torch.tensor([0, 1, 2, 0])), base.off(), base.apply(base.fold("a"), merge=True)):
        with context:
            assert torch.equal(net(x), expected)
    assert base.assign([torch.tensor([1])]) is None
    adapter.detach()
    with BaseRouting().route(torch.tensor([0])):
        assert torch.equal(net(x), expected)
