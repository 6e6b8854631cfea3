"""Methods with token gates against explicit loops over tokens and experts, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils._python_dispatch import TorchDispatchMode
from toy_net import LABELS, TASKS, Net, inputs

from harness.errors import NotFoldable, UsageError
from harness.method import Budget
from harness.testing.toys import perturb
from methods.adamole import AdaMoLE
from methods.base import LoRAMethod
from methods.hydra_lora import HydraLoRA
from methods.layers.token_gates import TokenGate, TokenGatedLinear
from methods.lora_all import LoRAAll
from methods.lora_moe import LoRAMoE
from methods.mola import MoLA

pytestmark = pytest.mark.numeric

Values = Mapping[str, Tensor]
ROUTE = torch.tensor(LABELS)
METHODS = [
    HydraLoRA(rank=3, n_experts=4),
    LoRAMoE(expert_rank=2, n_experts=3, balance=0.7),
    MoLA(expert_rank=2, n_experts=(5,), top_k=2, balance=0.7),
    AdaMoLE(expert_rank=2, n_experts=4, balance=0.7),
    AdaMoLE(expert_rank=2, n_experts=4, balance=0.7, max_threshold=0.4),
]
IDS = ["hydra_lora", "lora_moe", "mola", "adamole", "adamole high"]


def attached(method: LoRAMethod, net: nn.Module | None = None) -> tuple[Any, Any]:
    net = Net().eval() if net is None else net
    adapter = method.attach(net, TASKS, seed=0)
    perturb(adapter, 0.4)
    return net, adapter


class Loop:
    """One adapted layer, a token and an expert at a time; ``scores`` and ``used`` are kept for the load balance."""

    def __init__(self, method: Any, module: str, values: Values) -> None:
        self.method, self.module, self.values = method, module, values
        self.scores: list[list[Tensor]] = []
        self.used: list[list[bool]] = []

    def share(self, x: Tensor) -> Tensor:
        """What is added for one token's vector x (d_in,)."""
        router = self.values[f"{self.module}.gate.weight"]
        exps = [(router[k] @ x).exp() for k in range(len(router))]
        p = [e / sum(exps) for e in exps]
        scores, used = p, [True] * len(p)
        if isinstance(self.method, MoLA):
            best = sorted(range(len(p)), key=lambda k: -float(p[k].detach()))[: self.method.top_k]
            used = [k in best for k in range(len(p))]
        if isinstance(self.method, AdaMoLE):
            w, b = (self.values[f"{self.module}.gate.threshold_{part}"] for part in ("weight", "bias"))
            highest = self.method.max_threshold or 1 / len(p)
            tau = highest / (1 + (-(w[0] @ x) - b[0]).exp())
            scores = [pk - tau for pk in p]
            used = [float(s.detach()) >= 0 for s in scores]
        self.scores.append(scores)
        self.used.append(used)
        total = sum(s for s, u in zip(scores, used, strict=True) if u)
        out = torch.zeros((), dtype=x.dtype)
        rank = self.values[f"{self.module}.B"].shape[1] // len(p)
        for k in range(len(p)):
            if used[k]:
                own = slice(0, rank) if isinstance(self.method, HydraLoRA) else slice(k * rank, (k + 1) * rank)
                a, b = (
                    self.values[f"{self.module}.A"][own],
                    self.values[f"{self.module}.B"][:, k * rank : (k + 1) * rank],
                )
                out = out + self.method.alpha / rank * scores[k] / total * (b @ (a @ x))
        return out

    def balance(self, first: int, counted: list[bool]) -> Tensor:
        """Of one sequence, whose tokens are ``scores[first:]``."""
        at = [first + i for i, real in enumerate(counted) if real]
        experts = range(len(self.scores[0]))
        mean = [sum(self.scores[i][k] for i in at) / len(at) for k in experts]
        if isinstance(self.method, LoRAMoE):
            centre = sum(mean) / len(mean)
            return sum((m - centre) ** 2 for m in mean) / (len(mean) - 1) / (centre**2 + 1e-10)
        share = [sum(self.used[i][k] for i in at) / len(at) for k in experts]
        return len(mean) * sum(f * m for f, m in zip(share, mean, strict=True))


def by_loop(net: Any, method: Any, x: Tensor, values: Values, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the load balance summed over sequences and layers."""
    layers = Loop(method, "first", values), Loop(method, "second", values)
    rows, balance = [], torch.zeros((), dtype=x.dtype)
    for row, real in zip(x, mask.tolist(), strict=True):
        first = len(layers[0].scores)
        hidden = [torch.tanh(net.first.base(token) + layers[0].share(token)) for token in row]
        rows.append(torch.stack([net.second.base(h) + layers[1].share(h) for h in hidden]))
        if getattr(method, "balance", 0):
            balance = balance + sum(layer.balance(first, real) for layer in layers)
    return torch.stack(rows), getattr(method, "balance", 0) * balance


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_a_method_and_its_load_balance_are_their_equations_with_every_gradient(method: Any, padded: bool) -> None:
    net, adapter = attached(method)
    net.train()
    x, mask = inputs(), torch.ones(4, 3, dtype=torch.bool)
    target = torch.randn(4, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with adapter.route(ROUTE):
        if padded:
            mask[0, :2] = mask[2, 0] = False
            if hasattr(adapter, "count_tokens"):
                adapter.count_tokens([mask])
        out = net(x)
        penalty = adapter.penalty()
        ((out * target).sum() + penalty).backward()
    values = {n: p.detach().clone().requires_grad_() for n, p in adapter.trainable().items()}
    expected, balance = by_loop(net, method, x, values, mask)
    ((expected * target).sum() + balance).backward()
    assert (out - expected).abs().max() < 1e-10
    assert float(penalty.detach()) == pytest.approx(float(balance.detach()), abs=1e-10)
    assert (float(penalty.detach()) > 0) == (not isinstance(method, HydraLoRA))
    for name, parameter in adapter.trainable().items():
        assert values[name].grad is not None, name
        assert values[name].grad.any(), name
        assert (parameter.grad - values[name].grad).abs().max() < 1e-10, name


def test_the_load_balance_is_smallest_where_tokens_share_the_experts_equally() -> None:
    for method, least in ((METHODS[1], 0.0), (METHODS[2], 2.0)):
        net, adapter = attached(method)
        net.train()
        found = []
        for scale in (1.0, 0.3, 1e-4):
            with torch.no_grad():
                for name, parameter in adapter.trainable().items():
                    if "gate" in name:
                        parameter.mul_(scale)
            with adapter.route(ROUTE):
                net(inputs())
                found.append(float(adapter.penalty().detach()) / (0.7 * 2 * 4))
        assert found == sorted(found, reverse=True)
        assert found[-1] == pytest.approx(least, abs=1e-3)


@pytest.mark.parametrize("method", [HydraLoRA(rank=6, n_experts=1), LoRAMoE(expert_rank=6, n_experts=1)])
def test_one_expert_is_the_one_lora_for_all_bit_for_bit_over_steps_of_training(method: LoRAMethod) -> None:
    found = []
    for one in (method, LoRAAll(rank=6)):
        net = Net().to(torch.float32)
        adapter = one.attach(net, TASKS, seed=0)
        parameters = adapter.trainable()
        optimiser = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.0)
        for _ in range(4):
            with adapter.route(ROUTE):
                out = net(inputs().float())
                out.square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
        found.append((out.detach(), {n: p.detach() for n, p in parameters.items() if "gate" not in n}))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())
    assert found[0][1]["second.B"].abs().max() > 1e-3


@pytest.mark.parametrize(
    "method",
    [
        HydraLoRA(rank=3),
        LoRAMoE(),
        MoLA(n_experts=(3,), top_k=3, expert_rank=2),
        AdaMoLE(max_threshold=0.0),
    ],
)
def test_a_uniform_router_is_the_average_of_the_experts(method: LoRAMethod) -> None:
    net, adapter = attached(method)
    values = adapter.trainable()
    with torch.no_grad():
        for name, parameter in values.items():
            if "gate.weight" in name:
                parameter.zero_()
    x = inputs()

    def average(module: str, x: Tensor) -> Tensor:
        b, n = values[f"{module}.B"], len(values[f"{module}.gate.weight"])
        rank = b.shape[1] // n
        a = values[f"{module}.A"].repeat(n, 1) if isinstance(method, HydraLoRA) else values[f"{module}.A"]
        return method.alpha / rank / n * (x @ a.T @ b.T)

    hidden = torch.tanh(net.first.base(x) + average("first", x))
    with adapter.route(ROUTE):
        assert (net(x) - net.second.base(hidden) - average("second", hidden)).abs().max() < 1e-10


def test_a_token_that_passes_no_threshold_adds_nothing_and_has_finite_gradients() -> None:
    net, adapter = attached(AdaMoLE(max_threshold=50.0, balance=0.0))
    with adapter.route(ROUTE):
        out = net(inputs())
        out.sum().backward()
    with adapter.off():
        assert torch.equal(out, net(inputs()))
    assert all(p.grad is None or p.grad.isfinite().all() for p in adapter.trainable().values())


def test_layers_have_more_experts_by_depth_and_encoder_and_decoder_are_counted_apart(
    toy_llama: Callable[..., Any],
) -> None:
    model = toy_llama(num_hidden_layers=5)
    adapter = MoLA(targets="model.layers.*.q_proj,model.layers.4.mlp.up_proj").attach(model, TASKS, seed=0)
    shape = {name: len(p) for name, p in adapter.trainable().items() if name.endswith("q_proj.gate.weight")}
    assert list(shape.values()) == [2, 2, 4, 6, 8]
    adapter.detach()
    only = MoLA(targets="model.layers.3.*").attach(model, TASKS, seed=0)
    assert {len(p) for name, p in only.trainable().items() if name.endswith("gate.weight")} == {6}
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_decoder_layers=4, num_heads=2)
    t5 = MoLA(targets="wi").attach(T5ForConditionalGeneration(config), TASKS, seed=0)
    shape = {name: len(p) for name, p in t5.trainable().items() if name.endswith("gate.weight")}
    assert list(shape.values()) == [2, 6, 2, 4, 6, 8]


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_decoding_with_a_cache_is_one_pass_over_the_whole_text(toy_llama: Callable[..., Any], method: Any) -> None:
    model, adapter = attached(method, toy_llama())
    ids = torch.arange(14).view(2, 7)
    with torch.no_grad(), adapter.route(torch.tensor([0, 2])):
        whole = model(input_ids=ids).logits
        cache = model(input_ids=ids[:, :3], use_cache=True).past_key_values
        for i in range(3, 7):
            step = model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits
            assert (step[:, 0] - whole[:, i]).abs().max() < 1e-6
    with torch.no_grad(), adapter.off():
        assert (model(input_ids=ids).logits - whole).abs().max() > 1e-3


def test_the_number_of_parameters_is_that_of_the_equations() -> None:
    def count(method: LoRAMethod) -> int:
        return sum(p.numel() for p in method.attach(Net(), TASKS, seed=0).trainable().values())

    widths = [(8, 12), (12, 4)]
    assert count(HydraLoRA(rank=3, n_experts=4)) == sum(3 * i + 4 * 3 * o + 4 * i for i, o in widths)
    assert count(LoRAMoE(expert_rank=2, n_experts=3)) == sum(3 * (2 * i + 2 * o + i) for i, o in widths)
    assert count(MoLA(expert_rank=2, n_experts=(5,))) == sum(5 * (2 * i + 2 * o + i) for i, o in widths)
    assert count(AdaMoLE(expert_rank=2, n_experts=3)) == sum(3 * (2 * i + 2 * o + i) + i + 1 for i, o in widths)


def test_the_stored_rank_is_that_of_a_lora_with_as_many_parameters_on_a_square_layer() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Linear(64, 64)

    for method in (HydraLoRA(), LoRAMoE(), MoLA(n_experts=(5,)), AdaMoLE()):
        net = Square().requires_grad_(False)
        n = sum(p.numel() for p in method.attach(net, TASKS, seed=0).trainable().values())
        assert method.ranks(3).active == 16
        assert method.ranks(3).stored - 1 < (n - 1) / 128 <= method.ranks(3).stored


def test_the_largest_rank_within_a_budget_is_used() -> None:
    for method in (HydraLoRA(), LoRAMoE(), MoLA(), AdaMoLE()):
        for rank in (60, 100):
            fitted = method.within(Budget(kind="stored", rank=rank), 3)
            larger = type(method)(**{method.rank_field: getattr(fitted, method.rank_field) + 1})
            assert fitted.ranks(3).stored <= rank < larger.ranks(3).stored


def test_a_token_gate_reads_the_input_before_dropout() -> None:
    net, adapter = attached(LoRAMoE(dropout=0.5, targets="first"))
    net.train()
    x, layer = inputs(), adapter.layers["first"]
    torch.manual_seed(1)
    with adapter.route(ROUTE):
        found = net.first(x) - net.first.base(x)
    torch.manual_seed(1)
    dropped = dropout(x, 0.5)
    g = layer.gate(x).g
    z = torch.unflatten(dropped @ layer.a.T, -1, (8, 2)) * g[..., None]
    assert (found - 16 * z.flatten(2) @ layer.b.T).abs().max() < 1e-10


def test_half_precision_keeps_float32_parameters_and_weights_that_sum_to_one() -> None:
    for method in METHODS:
        net = Net().to(torch.bfloat16)
        adapter = method.attach(net, TASKS, seed=0)
        perturb(adapter, 0.1)
        net.train()
        with adapter.route(ROUTE):
            out = net(inputs().bfloat16())
            (out.float().sum() + adapter.penalty()).backward()
        assert out.dtype == torch.bfloat16
        assert {p.dtype for p in adapter.trainable().values()} == {torch.float32}
        assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.trainable().values())
        layer = adapter.layers["first"]
        assert isinstance(layer, TokenGatedLinear)
        g = layer.gate(inputs().bfloat16()).g
        assert g.dtype == torch.float32
        assert (g.sum(-1) - 1).abs().max() < 1e-6


class Operations(TorchDispatchMode):
    """Counts what a GPU would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: HydraLoRA(n_experts=n),
        lambda n: LoRAMoE(n_experts=n, balance=0.1),
        lambda n: MoLA(n_experts=(n,)),
        lambda n: AdaMoLE(n_experts=n),
    ],
    ids=["hydra_lora", "lora_moe", "mola", "adamole"],
)
def test_a_step_has_as_many_operations_for_two_experts_as_for_eight(make: Callable[[int], LoRAMethod]) -> None:
    counts = []
    for n in (2, 8):
        net, adapter = attached(make(n))
        net.train()
        with Operations() as operations, adapter.route(ROUTE):
            (net(inputs()).sum() + adapter.penalty()).backward()
        counts.append(operations.n)
    assert counts[0] == counts[1] > 20


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_a_token_gate_does_not_fold_and_the_error_says_what_to_do(method: LoRAMethod) -> None:
    _, adapter = attached(method)
    with pytest.raises(NotFoldable, match=r"token gate of first.*harness predict.*a method that folds"):
        adapter.fold("a")


def test_routers_start_kaiming_uniform_by_expert_and_module() -> None:
    few = LoRAMoE(n_experts=2).attach(Net(), TASKS, seed=7).state_dict()
    many = LoRAMoE(n_experts=3).attach(Net(), TASKS, seed=7).state_dict()
    router = many["first.gate.weight"]
    assert torch.equal(few["first.gate.weight"], router[:2])
    assert not torch.equal(router[0], router[1])
    assert router.abs().max() <= 1 / math.sqrt(8)
    assert router.std() == pytest.approx(1 / math.sqrt(24), rel=0.3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MoLA(n_experts=(4, 1)), r"method.n_experts=\[4, 1\]: give method.top_k=2 or more experts"),
        (lambda: MoLA(top_k=0), "method.top_k=0: use 1 or more"),
        (lambda: HydraLoRA(n_experts=0), "method.n_experts=0: use 1 or more"),
        (lambda: LoRAMoE(balance=-0.1), "method.balance=-0.1: use 0 or more"),
        (lambda: AdaMoLE(max_threshold=math.nan), "method.max_threshold=nan: use 0 or more"),
    ],
)
def test_values_out_of_range_are_errors_that_name_the_key(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_the_gate_of_a_token_depends_on_that_token_only() -> None:
    _, adapter = attached(LoRAMoE(targets="first"))
    gate, x = adapter.layers["first"].gate, inputs()
    assert isinstance(gate, TokenGate)
    changed = x.clone()
    changed[1, 2] += 1
    moved = (gate(changed).g - gate(x).g).abs().amax(-1) > 1e-9
    assert moved.nonzero().tolist() == [[1, 2]]
