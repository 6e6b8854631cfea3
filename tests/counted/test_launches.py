"""What a training step and a decoded token ask of a GPU's host, counted on a CPU: upper bounds by method.

Counts are those of a model of 30 blocks, from one block and two. PEFT's LoRA with float32 factors under autocast is the
measure: at the sizes where a GPU waits for launches, the ratio of launches is the ratio of times.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from harness.bench.counted_device import OpCounter, counted_device, to_counted
from harness.bench.launches import count_decoding, count_method, count_whole, peft_contender
from harness.method import AdapterMethod
from methods.c_poly import CPoly
from methods.cgc_lora import CGCLoRA
from methods.lora_all import LoRAAll
from methods.moa import MoA
from methods.moe_lora import MoELoRA
from methods.mtl_lora import MTLLoRA

TASKS = 8


@pytest.fixture
def counter() -> Iterator[OpCounter]:
    with counted_device() as counter:
        yield counter


@pytest.fixture(scope="module")
def peft() -> int:
    pytest.importorskip("peft")
    with counted_device() as counter:
        return count_whole(counter, TASKS, peft_contender)


@pytest.mark.parametrize(
    ("method", "most"),
    [
        pytest.param(CGCLoRA(), 1.05, id="cgc_lora"),
        pytest.param(MoA(), 1.7, id="moa"),
        pytest.param(LoRAAll(), 1.05, id="lora_all", marks=pytest.mark.long),
        pytest.param(MoELoRA(), 1.05, id="moe_lora", marks=pytest.mark.long),
        pytest.param(MTLLoRA(), 1.05, id="mtl_lora", marks=pytest.mark.long),
        pytest.param(CPoly(), 1.3, id="c_poly", marks=pytest.mark.long),
    ],
)
def test_a_step_launches_little_more_than_peft_s_and_hardly_waits(
    counter: OpCounter, peft: int, method: AdapterMethod, most: float
) -> None:
    rows = count_method(counter, method, TASKS, peft)
    assert rows
    for row in rows:
        assert row.to_peft is not None
        assert row.to_peft <= most, row
        # The loss is read once, and attention over packed sequences waits once for its mask. Routers read prompts with
        # a mask that no host waits for.
        assert row.waits <= 2, row.places
        assert row.blocking_copies == 0, row.places


@pytest.mark.long
def test_decoding_waits_for_no_token_and_a_fold_beside_the_weights_costs_little(counter: OpCounter) -> None:
    rows = {row.kind: row for row in count_decoding(counter, CGCLoRA(), 3)}
    assert rows["folded"].launches <= 1.3 * rows["base"].launches
    for row in rows.values():
        assert row.waits <= 1 / 8, "finished sequences are looked for after eight tokens"
        many, few = row.prompts
        assert many == few, "prompts join in a number of launches that does not depend on theirs"


def test_views_launch_nothing_and_reads_of_results_wait(counter: OpCounter) -> None:
    x = torch.ones(4, 6).to(counter.device)

    def counts(work: object) -> tuple[int, int]:
        assert callable(work)
        found = counter.count(work)
        return found.launches, found.waits

    assert counts(lambda: x.view(6, 4).t()[1:].unsqueeze(0)) == (0, 0)
    assert counts(lambda: torch.empty_like(x)) == (0, 0)
    assert counts(lambda: x + 1) == (1, 0)
    assert counts(lambda: x.sum().item()) == (1, 1)
    assert counts(lambda: x.tolist()) == (0, 1)
    assert counts(lambda: x.cpu()) == (0, 1)
    assert counts(lambda: x[x > 0]) == (2, 1)
    assert counts(lambda: x.addmm_(x[:, :4], x)) == (1, 0)
    assert counts(lambda: torch.addmm(x, x[:, :4], x)) == (2, 0)


def test_a_copy_from_ordinary_memory_blocks_and_one_from_pinned_memory_does_not(counter: OpCounter) -> None:
    host = torch.ones(3)
    ordinary = counter.count(lambda: host.to(counter.device))
    assert (ordinary.copies, ordinary.blocking_copies) == (0, 1)
    assert [place.partition(":")[0] for place in ordinary.places] == ["tests/counted/test_launches.py"]
    unpinned = counter.count(lambda: host.to(counter.device, non_blocking=True))
    assert unpinned.blocking_copies == 1, "without pinned memory the host waits all the same"
    pinned = counter.count(lambda: host.pin_memory().to(counter.device, non_blocking=True))
    assert (pinned.copies, pinned.blocking_copies) == (1, 0)
    listed = counter.count(lambda: torch.tensor([1, 2], device=counter.device))
    assert listed.blocking_copies == 1


def test_mixed_devices_are_an_error(counter: OpCounter) -> None:
    with pytest.raises(RuntimeError, match="expected all tensors on counted:0"):
        torch.ones(3).to(counter.device) + torch.ones(3)


def test_the_device_computes_what_the_cpu_computes(counter: OpCounter) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 5, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    hidden = torch.rand(5, 5).tril() > 0
    attention = nn.functional.scaled_dot_product_attention

    def gradients(*inputs: Tensor) -> list[Tensor]:
        mask = hidden.to(inputs[0].device)
        out = attention(*inputs, attn_mask=mask, enable_gqa=True)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    there = to_counted(nn.ParameterList([q.detach(), k.detach(), v.detach()]))
    for one, other in zip(gradients(q, k, v), gradients(*there), strict=True):
        assert torch.allclose(one, other.cpu(), atol=1e-12)
