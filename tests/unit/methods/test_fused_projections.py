"""Folded LoRAs next to the weights: layers that read one tensor share a product, and nothing else changes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from toy_net import TASKS

from harness.method import LoRAFactors
from methods.layers import fused
from methods.layers.fused import FusedDownProjection, fuse_down_projections
from methods.lora_all import LoRAAll

pytestmark = pytest.mark.numeric

CLOSE = 1e-6  # of whole models: their norms compute in float32


class Attention(nn.Module):
    """q, k and v of a width each, and an output layer of the same width; float64, frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.o_proj = nn.Linear(8, 8)
        self.to(torch.float64).requires_grad_(False)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        q = self.q_proj(x)
        return self.o_proj(q + torch.cat([self.k_proj(memory), self.v_proj(memory)], -1).mean(1, keepdim=True))


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def factors_of(model: nn.Module, ranks: Mapping[str, int] | None = None) -> dict[str, LoRAFactors]:
    """A LoRA for every linear layer of a block, of the rank that its last name has (3 otherwise)."""
    found = {}
    for i, (name, module) in enumerate(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            rank = (ranks or {}).get(name.rpartition(".")[2], 3)
            a, b = tensor(rank, module.in_features, seed=i), tensor(module.out_features, rank, seed=100 + i)
            found[name] = LoRAFactors(a=0.3 * a, b=0.3 * b)
    return found


def by_hand(model: nn.Module, factors: Mapping[str, LoRAFactors], run: Callable[[], Any]) -> Any:
    """``run()`` on the bare model with b a in its weights."""
    with torch.no_grad():
        for name, lora in factors.items():
            model.get_submodule(name).weight.add_(lora.b @ lora.a)
    out = run()
    with torch.no_grad():
        for name, lora in factors.items():
            model.get_submodule(name).weight.sub_(lora.b @ lora.a)
    return out


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of A in each product of the folded state."""
    seen: list[int] = []

    def counted(x: Tensor, a: Tensor) -> Tensor:
        seen.append(a.shape[0])
        return linear(x, a)

    monkeypatch.setattr(fused, "linear", counted)
    return seen


@pytest.mark.parametrize("grad", [False, True])
def test_a_llama_with_few_key_heads_multiplies_once_for_q_k_v_and_once_for_gate_and_up(
    toy_llama: Any, products: list[int], grad: bool
) -> None:
    model, ids = toy_llama(), torch.arange(12).view(2, 6)
    factors = factors_of(model, {"q_proj": 5, "v_proj": 1, "up_proj": 4})
    expected = by_hand(model, factors, lambda: model(input_ids=ids).logits)
    adapter = LoRAAll().attach(model, TASKS, seed=0)
    with adapter.apply(factors, merge=False), torch.set_grad_enabled(grad):
        for _ in range(2):
            products.clear()
            assert (model(input_ids=ids).logits - expected).abs().max() < CLOSE
            assert products == [5 + 3 + 1, 3, 3 + 4, 3] * 2
        with torch.no_grad():
            other = model(input_ids=ids + 1).logits
    adapter.detach()
    assert (other - by_hand(model, factors, lambda: model(input_ids=ids + 1).logits)).abs().max() < CLOSE
    assert (other - expected).abs().max() > 1e-3


def test_decoding_with_a_cache_is_one_pass_over_the_whole_text(toy_llama: Any) -> None:
    model, ids = toy_llama(), torch.arange(14).view(2, 7)
    adapter = LoRAAll().attach(model, TASKS, seed=0)
    with torch.no_grad(), adapter.apply(factors_of(toy_llama()), merge=False):
        whole = model(input_ids=ids).logits
        cache = model(input_ids=ids[:, :3], use_cache=True).past_key_values
        for i in range(3, 7):
            step = model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits
            assert (step[:, 0] - whole[:, i]).abs().max() < CLOSE


@pytest.mark.parametrize("adapted", [["k_proj"], ["q_proj", "v_proj"], ["k_proj", "v_proj", "o_proj"]])
def test_only_adapted_layers_share(adapted: list[str], products: list[int]) -> None:
    model, x = Attention(), tensor(2, 5, 8)
    factors = {name: lora for name, lora in factors_of(model).items() if name in adapted}
    expected = by_hand(model, factors, lambda: model(x))
    adapter = LoRAAll().attach(model, TASKS, seed=0)
    with adapter.apply(factors, merge=False):
        assert (model(x) - expected).abs().max() < 1e-12
    shared = [name for name in adapted if name != "o_proj"]
    assert products == [3 * len(shared)] + [3] * ("o_proj" in adapted)


def test_layers_that_read_different_tensors_are_not_mistaken_for_each_other() -> None:
    model, factors = Attention(), factors_of(Attention(), {"k_proj": 2})
    memories = [tensor(2, 5, 8, seed=s) for s in (1, 1, 2)]  # the first two are equal, and not the same
    inputs = [tensor(2, 3, 8, seed=s) for s in (7, 8, 8)]
    expected = [by_hand(model, factors, lambda x=x, m=m: model(x, m)) for x, m in zip(inputs, memories, strict=True)]
    adapter = LoRAAll().attach(model, TASKS, seed=0)
    with adapter.apply(factors, merge=False):
        for x, memory, y in zip(inputs, memories, expected, strict=True):
            for _ in range(2):
                assert (model(x, memory) - y).abs().max() < 1e-12


def test_an_encoder_decoder_s_cross_attention_reads_both_sides() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
    config = T5Config(**sizes, feed_forward_proj="gated-gelu", decoder_start_token_id=0)
    model: Any = T5ForConditionalGeneration(config).to(torch.float64).eval().requires_grad_(False)
    ids, answer = torch.arange(10).view(2, 5), torch.tensor([[0, 3, 4, 5], [0, 7, 8, 9]])
    factors = factors_of(model)

    def run() -> Tensor:
        return model(input_ids=ids, decoder_input_ids=answer).logits

    def steps() -> Tensor:
        encoded, cache, found = model.get_encoder()(input_ids=ids), None, []
        for i in range(answer.shape[1]):
            step_inputs = {"decoder_input_ids": answer[:, i : i + 1], "past_key_values": cache, "use_cache": True}
            out = model(encoder_outputs=encoded, **step_inputs)
            cache = out.past_key_values
            found.append(out.logits)
        return torch.cat(found, 1)

    expected = by_hand(model, factors, run)
    adapter = LoRAAll().attach(model, TASKS, seed=0)
    with torch.no_grad(), adapter.apply(factors, merge=False):
        assert (run() - expected).abs().max() < CLOSE
        assert (steps() - expected).abs().max() < CLOSE
        assert (run() - expected).abs().max() < CLOSE


@pytest.mark.parametrize("grad", [False, True])
def test_a_tensor_written_to_between_two_fused_projections_is_read_again(grad: bool) -> None:
    parts = [tensor(2, 8, seed=i) for i in range(3)]
    fused_projection, x = FusedDownProjection(parts), tensor(5, 8)
    with torch.set_grad_enabled(grad):
        assert (fused_projection.product(0, x) - x @ parts[0].T).abs().max() < 1e-12
        x.mul_(2)
        for i in (1, 2, 0):
            assert (fused_projection.product(i, x) - x @ parts[i].T).abs().max() < 1e-12
            x[0] += 1


def test_what_an_exception_left_is_never_used_for_another_tensor() -> None:
    model, factors = Attention(), factors_of(Attention())
    first, second = tensor(2, 3, 8, seed=1), tensor(2, 3, 8, seed=2)
    expected = by_hand(model, factors, lambda: model(second))
    adapter = LoRAAll().attach(model, TASKS, seed=0)
    with adapter.apply(factors, merge=False):
        for name, lora in factors.items():
            with pytest.raises(RuntimeError):
                model(first, tensor(2, 3, 7))  # after q, before k
            base = adapter.layers[name].base(second)
            assert (model.get_submodule(name)(second) - base - second @ lora.a.T @ lora.b.T).abs().max() < 1e-12
        assert (model(second) - expected).abs().max() < 1e-12


def test_nothing_is_kept_once_the_last_sibling_has_asked_or_the_tensor_is_gone() -> None:
    fused_projection, x = FusedDownProjection([tensor(2, 8, seed=i) for i in range(2)]), tensor(5, 8)
    z = fused_projection.product(0, x)
    assert z._base is not None
    whole = weakref.ref(z._base)
    fused_projection.product(1, x)
    del z
    gc.collect()
    assert whole() is None, "both have asked"
    z = fused_projection.product(0, x)
    whole = weakref.ref(z._base)
    gone = weakref.ref(x)
    del z
    assert whole() is not None
    del x
    assert gone() is None, "a tensor lives no longer for having been read"
    assert whole() is None, "and nor does what it gave"


def test_a_recorded_graph_is_each_layer_s_own() -> None:
    model, factors = Attention(), factors_of(Attention())
    x = tensor(2, 3, 8).requires_grad_()
    adapter = LoRAAll().attach(model, TASKS, seed=0)
    with adapter.apply(factors, merge=False):
        with torch.no_grad():
            model.q_proj(x)  # leaves the shares of k and v without a graph
        for name in ("k_proj", "v_proj"):
            x.grad = None
            model.get_submodule(name)(x).sum().backward()
            weight = adapter.layers[name].base.weight + factors[name].b @ factors[name].a
            assert (x.grad - weight.sum(0)).abs().max() < 1e-12
    before = [p.clone() for p in model.parameters()]
    with adapter.apply(factors, merge=False), torch.inference_mode():
        model(tensor(2, 3, 8))
    assert all(map(torch.equal, before, model.parameters()))


def test_fused_layers_are_of_one_module_one_width_and_names_that_belong_together() -> None:
    widths = {"a.q": 8, "a.k": 8, "a.v": 6, "a.o": 8, "b.q": 8, "a.wi_0": 8, "a.wi_1": 8, "query": 8, "key": 8}
    found = fuse_down_projections({n: LoRAFactors(a=tensor(2, w), b=tensor(8, 2)) for n, w in widths.items()})
    groups: dict[int, set[str]] = {}
    for name, folded in found.items():
        groups.setdefault(id(folded.down_projection), set()).add(name)
    together = {frozenset(names) for names in groups.values() if len(names) > 1}
    assert together == {frozenset({"a.q", "a.k"}), frozenset({"a.wi_0", "a.wi_1"}), frozenset({"query", "key"})}
