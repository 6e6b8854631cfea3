"""Expert layers against an explicit loop over sequences and experts, in float64."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from by_loop import assert_equals_loop, by_loop, expert
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from toy_net import LABELS, TASKS, Net, inputs

from harness.method import LoRAFactors
from harness.testing.toys import perturb
from methods.base import LoRAMethod
from methods.c_poly import CPoly
from methods.cgc_lora import CGCLoRA
from methods.lora_all import LoRAAll
from methods.lora_single import LoRASingle
from methods.moe_lora import MoELoRA

pytestmark = pytest.mark.numeric


@pytest.fixture
def x() -> Tensor:
    return inputs()


@pytest.mark.parametrize("scope", ["linear", "block", "model"])
@pytest.mark.parametrize("gate", ["embedding", "logits", "uniform"])
@pytest.mark.parametrize("softmax", ["joint", "separate"])
def test_cgc_is_its_equation(x: Tensor, scope: str, gate: str, softmax: str) -> None:
    method = CGCLoRA(n_common=3, n_specific=2, expert_rank=2, gate=gate, gate_scope=scope, gate_softmax=softmax)

    def share(module: str, task: int, row: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        key = f"{module}.gate" if scope == "linear" else "gate"
        if gate == "embedding":
            z = values[f"{key}.scores.weight"] @ values["embedding.weight"][task]
        else:
            z = values[f"{key}.scores.logits"][task] if gate == "logits" else torch.zeros(5, dtype=torch.float64)
        if softmax == "joint":
            g = z.exp() / z.exp().sum()
        else:
            g = torch.cat([z[:3].exp() / z[:3].exp().sum() * 3 / 5, z[3:].exp() / z[3:].exp().sum() * 2 / 5])
        total = torch.zeros((), dtype=torch.float64)
        for weight, k in zip(g, [0, 1, 2, 3 + 2 * task, 4 + 2 * task], strict=True):
            a, b = expert(values, module, k, 2)
            total = total + 32 / 2 * weight * (row @ a.T @ b.T)
        return total

    assert_equals_loop(method, share, x)


@pytest.mark.parametrize(("scale", "s"), [("release", 32 / 8), ("lora", 32 / 2)])
@pytest.mark.parametrize("scope", ["model", "layer"])
def test_moe_is_its_equation(x: Tensor, scope: str, scale: str, s: float) -> None:
    def share(module: str, task: int, row: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        key = "gate" if scope == "model" else f"{module}.gate"
        g = (values[f"{key}.scores.weight"] @ values["embedding.weight"][task]).softmax(-1)
        pairs = [expert(values, module, k, 2) for k in range(4)]
        return s * sum((g[k] * (row @ a.T @ b.T) for k, (a, b) in enumerate(pairs)), torch.zeros(()))

    assert_equals_loop(MoELoRA(rank=8, n_experts=4, scale=scale, gate_scope=scope), share, x)


@pytest.mark.parametrize(
    "method",
    [
        CPoly(rank=2),
        CPoly(rank=2, variant="simple"),
        CPoly(rank=2, variant="poly"),
        CPoly(rank=2, merge="output"),
        CPoly(rank=2, variant="poly", n_splits=4),
    ],
    ids=["c_poly", "simple", "poly", "output", "mhr"],
)
def test_poly_is_its_equation(x: Tensor, method: CPoly) -> None:
    q = method.n_splits

    def share(module: str, task: int, row: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        a = torch.sigmoid(values[f"{module}.gate.assignment"][task]).view(q, 3)
        w = a / (a.sum(1, keepdim=True) + 1e-12)
        if method.variant == "c_poly":
            w = torch.cat([w, values[f"{module}.gate.specific"][task][None]], 1)
        if method.variant == "simple":
            w = torch.cat([w, torch.eye(3, dtype=torch.float64)[task][None]], 1)
        pairs = [expert(values, module, k, 2) for k in range(w.shape[1])]
        if method.merge == "output":
            return sum((w[0, k] * (row @ a.T @ b.T) for k, (a, b) in enumerate(pairs)), torch.zeros(())) / 2
        blocks_a, blocks_b = [], []
        for split in range(q):
            blocks_a.append(sum(w[split, k] * a.chunk(q, 1)[split] for k, (a, _) in enumerate(pairs)))
            blocks_b.append(sum(w[split, k] * b.chunk(q, 0)[split] for k, (_, b) in enumerate(pairs)))
        return row @ torch.cat(blocks_a, 1).T @ torch.cat(blocks_b, 0).T / 2

    assert_equals_loop(method, share, x)


def test_output_sum_and_factor_sum_differ_by_the_cross_terms(x: Tensor) -> None:
    outs, values = {}, {}
    for merge in ("output", "factor"):
        net = Net().eval()
        adapter = CPoly(rank=2, variant="poly", n_common=2, merge=merge, targets="first").attach(net, ["t"], seed=0)
        perturb(adapter)
        values = dict(adapter.trainable())
        with adapter.route(torch.zeros(4, dtype=torch.long)):
            outs[merge] = net.first(x)
    a = torch.sigmoid(values["first.gate.assignment"][0])
    g = a / a.sum()
    (a0, b0), (a1, b1) = (expert(values, "first", k, 2) for k in range(2))
    cross = g[0] * g[1] * (b0 @ a1 + b1 @ a0) + (g[0] ** 2 - g[0]) * (b0 @ a0) + (g[1] ** 2 - g[1]) * (b1 @ a1)
    assert (outs["factor"] - outs["output"] - x @ cross.T / 2).abs().max() < 1e-10
    assert (outs["factor"] - outs["output"]).abs().max() > 1e-3


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], LABELS], ids=["one task", "mixed"])
@pytest.mark.parametrize("tokens", [False, True])
def test_a_lora_per_task_is_its_task_s_lora(x: Tensor, labels: list[int], tokens: bool) -> None:
    net = Net()
    adapter = LoRASingle(rank=3).attach(net, TASKS, seed=0)
    perturb(adapter)

    def share(module: str, task: int, row: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        a, b = values[f"{module}.A.{TASKS[task]}"], values[f"{module}.B.{TASKS[task]}"]
        return 32 / 3 * (row @ a.T @ b.T)

    route = torch.tensor(labels)
    with adapter.route(route[:, None].expand(4, 3) if tokens else route):
        out = net(x)
        out.pow(2).sum().backward()
    values = {n: p.detach().clone().requires_grad_() for n, p in adapter.trainable().items()}
    expected = by_loop(net, share, x, labels, values)
    expected.pow(2).sum().backward()
    assert (out - expected).abs().max() < 1e-10
    for name, parameter in adapter.trainable().items():
        mine, loop = parameter.grad, values[name].grad
        if loop is None:
            assert mine is None, f"{name} of an absent task has a gradient"
        else:
            assert (mine - loop).abs().max() < 1e-10, name


def test_tokens_of_several_tasks_in_one_row_use_their_own_shares(x: Tensor) -> None:
    route = torch.tensor([[0, 1, 2], [1, 1, 0], [2, 2, 2], [0, 2, 1]])
    for method in (CGCLoRA(), LoRASingle(), CPoly(), CPoly(variant="poly", n_splits=4)):
        net = Net().eval()
        adapter = method.attach(net, TASKS, seed=0)
        perturb(adapter)
        with adapter.route(route):
            packed = net(x)
        for row in range(4):
            for token in range(3):
                with adapter.route(route[row, token, None]):
                    alone = net(x[row, token, None, None])
                assert (packed[row, token] - alone).abs().max() < 1e-10


def test_rows_repeated_by_beams_or_flattened_keep_their_route(x: Tensor) -> None:
    net = Net()
    adapter = CGCLoRA().attach(net, TASKS, seed=0)
    perturb(adapter)
    with adapter.route(torch.tensor(LABELS)):
        rows, beams, flat = net(x), net(x.repeat_interleave(3, 0)), net(x.reshape(12, 8))
    assert torch.equal(beams, rows.repeat_interleave(3, 0))
    assert torch.equal(flat.view(rows.shape), rows)


@pytest.mark.parametrize(
    "method",
    [
        CGCLoRA(gate="uniform"),
        CGCLoRA(gate="logits"),
        CGCLoRA(gate="logits", gate_softmax="separate"),
        CGCLoRA(gate="uniform", n_common=3, n_specific=5, expert_rank=4),
        CGCLoRA(gate="uniform", layout="wide"),
        MoELoRA(gate="uniform", scale="lora"),
    ],
)
def test_a_uniform_gate_is_as_strong_as_one_lora_of_the_active_rank(method: LoRAMethod, x: Tensor) -> None:
    net = Net()
    adapter = method.attach(net, TASKS, seed=0)
    with torch.no_grad():  # noise on the experts alone: logits that start at 0 are a uniform gate
        for name, p in adapter.trainable().items():
            if "gate" not in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)), dtype=p.dtype))
    active = method.ranks(len(TASKS)).active
    with adapter.route(torch.ones(4, dtype=torch.long)):
        out = net(x)
    scale = method.alpha / active
    experts = {module: unscaled(adapter.trainable(), module, f) for module, f in adapter.fold("b.c").items()}
    hidden = torch.tanh(net.first.base(x) + scale * (x @ experts["first"]))
    expected = net.second.base(hidden) + scale * (hidden @ experts["second"])
    assert (out - expected).abs().max() < 1e-10


def unscaled(values: Mapping[str, Tensor], module: str, lora: LoRAFactors) -> Tensor:
    """A^T B^T of the experts that a folded LoRA holds, found by their rows of A, as they are stored."""
    a, b = values[f"{module}.A"], values[f"{module}.B"]
    chosen = [next(i for i, row in enumerate(a) if torch.equal(row, kept)) for kept in lora.a]
    return a[chosen].T @ b[:, chosen].T


def test_a_fold_is_its_route_to_1e_10(x: Tensor) -> None:
    methods = [LoRAAll(), LoRASingle(), CGCLoRA(), CGCLoRA(gate_softmax="separate"), MoELoRA(), CPoly()]
    methods += [CPoly(merge="output"), CPoly(variant="simple", merge="output"), CPoly(variant="poly", n_splits=4)]
    for method in methods:
        net = Net().eval()
        adapter = method.attach(net, TASKS, seed=0)
        perturb(adapter)
        for label, task in enumerate(TASKS):
            with adapter.route(torch.full((4,), label)):
                routed = net(x)
            for merge in (True, False):
                with adapter.apply(adapter.fold(task), merge=merge):
                    assert (net(x) - routed).abs().max() < 1e-10, (method, merge)


def test_dropout_draws_one_mask_per_layer_and_only_in_training(x: Tensor) -> None:
    net = Net()
    adapter = CGCLoRA(dropout=0.5, targets="first").attach(net, TASKS, seed=0)
    perturb(adapter)
    net.train()
    torch.manual_seed(1)
    with adapter.route(torch.tensor(LABELS)):
        dropped = net.first(x)
    torch.manual_seed(1)
    masked = F.dropout(x, 0.5)
    net.eval()
    with adapter.route(torch.tensor(LABELS)):
        share, quiet = net.first(masked) - net.first.base(masked), net.first(x)
    assert (dropped - net.first.base(x) - share).abs().max() < 1e-10
    assert (dropped - quiet).abs().max() > 1e-3


def test_a_bf16_base_keeps_float32_parameters_and_stays_near_float32(x: Tensor) -> None:
    for method in (LoRAAll(), LoRASingle(), CGCLoRA(), MoELoRA(), CPoly(), CPoly(variant="poly", n_splits=4)):
        outs = {}
        for dtype in (torch.float32, torch.bfloat16):
            net = Net().to(dtype).eval()
            adapter = method.attach(net, TASKS, seed=0)
            perturb(adapter, 0.1)
            with adapter.route(torch.tensor(LABELS)):
                out = net(x.to(dtype))
                out.float().sum().backward()
            assert out.dtype == dtype
            assert {p.dtype for p in adapter.trainable().values()} == {torch.float32}
            assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.trainable().values())
            outs[dtype] = out.float().detach()
        assert (outs[torch.float32] - outs[torch.bfloat16]).abs().max() < 0.1
