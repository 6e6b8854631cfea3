"""Which linear layers of a model are adapted: those that every token of a text goes through, in any architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.errors import ModelError, UsageError
from harness.linear_layers import linear_layers
from harness.method import iter_linear
from harness.models.parameter_count import describe_adapted
from harness.testing.toys import TASKS, toy_model
from methods.lora_all import LoRAAll

WIDTH = 16


class TupleRouter(nn.Linear):
    """A router that returns weights and choices, as those of Phi-3.5-MoE and Llama 4."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).topk(1)


class Mixture(nn.Module):
    """Experts that are layers and read the tokens a router gives them, and a layer that only chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.router = TupleRouter(WIDTH, 3)
        self.chooser = nn.Linear(WIDTH, WIDTH)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.stacked = nn.Parameter(torch.randn(3, WIDTH, WIDTH))
        self.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        weights, chosen = self.router(flat)
        best = self.chooser(flat).argmax(-1, keepdim=True)
        out = self.dense(flat) * weights + flat.gather(1, best) + flat @ self.stacked[0]
        for i, expert in enumerate(self.experts):
            rows = (chosen[:, 0] == i).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(flat[rows]))
        return out.view_as(x)


class SequenceFirst(nn.Module):
    """A layer that reads (S, B, d), where a route of sequences would meet the wrong tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x.transpose(0, 1)).transpose(0, 1)
        return out


def with_mlp(mlp: nn.Module) -> Any:
    """The toy Llama with another MLP in its last block."""
    model: Any = toy_model()
    torch.manual_seed(0)
    model.model.layers[1].mlp = mlp.to(torch.float64)
    return model.eval().requires_grad_(False)


def test_every_linear_layer_of_a_plain_decoder_but_its_head_is_adapted() -> None:
    model = toy_model()
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert [name for name, _ in iter_linear(model)] == linear
    assert linear_layers(model).left_out == ()


def test_a_tower_that_no_text_goes_through_is_neither_adapted_nor_counted() -> None:
    model: Any = toy_model()
    model.model.tower = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    adapter = LoRAAll(rank=2).attach(model, list(TASKS), seed=0)
    assert not [name for name in adapter.trainable() if "tower" in name]
    assert linear_layers(model).adapted(model) == 1
    assert describe_adapted(model) is None


def test_routers_experts_and_choosers_are_left_out_and_stacked_experts_are_named() -> None:
    model = with_mlp(Mixture())
    layers = [name for name, _ in iter_linear(model) if ".mlp." in name and "layers.1" in name]
    assert layers == ["model.layers.1.mlp.dense"]
    found = linear_layers(model).describe()
    assert "1 tensor of TupleRouter" in found
    assert "3 tensors of Linear" in found
    assert "1 tensor of Mixture" in found
    assert "are not linear layers" in found
    adapter = LoRAAll(rank=2).attach(model, list(TASKS), seed=0)
    share = linear_layers(model).adapted(model)
    assert share is not None
    assert 0 < share < 1
    assert "of the model's linear weights" in (describe_adapted(model) or "")
    labels = torch.tensor([0, 1, 2])
    with adapter.route(labels):
        model(input_ids=torch.arange(27).view(3, 9)).logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in adapter.trainable().values())


def test_a_layer_that_reads_sequences_in_another_order_is_left_out() -> None:
    model = with_mlp(SequenceFirst())
    assert not [name for name, _ in iter_linear(model) if "inner" in name]
    assert "in order" in linear_layers(model).describe()


def test_layers_that_only_read_predicted_tokens_belong_to_the_output_head() -> None:
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertLMHeadModel(BertConfig(vocab_size=50, is_decoder=True, **sizes)).eval().requires_grad_(False)
    assert not [name for name, _ in iter_linear(model) if not name.startswith("bert.encoder")]
    assert "1 tensor of Linear" in linear_layers(model).describe()
    assert "belong to the output head" in linear_layers(model).describe()
    adapter = LoRAAll(rank=2).attach(model, list(TASKS), seed=0)
    with adapter.route(torch.tensor([0, 2])):
        logits = model(input_ids=torch.arange(12).view(2, 6), logits_to_keep=3).logits
    assert logits.shape == (2, 3, 50)


def test_some_targets_are_a_share_of_the_weights() -> None:
    model = toy_model()
    LoRAAll(rank=2, targets="q_proj").attach(model, list(TASKS), seed=0)
    note = describe_adapted(model)
    assert note is not None
    assert "(2 of 14 linear layers)" in note


def test_the_probe_leaves_the_model_as_it_was() -> None:
    model = toy_model()
    model.train()
    model.get_submodule("model.layers.0").eval()
    before = {n: (m.training, len(m._forward_hooks)) for n, m in model.named_modules()}
    linear_layers(model)
    assert {n: (m.training, len(m._forward_hooks)) for n, m in model.named_modules()} == before
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_a_model_of_transposed_weights_is_refused_by_their_name() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=64)).eval()
    with pytest.raises(UsageError, match=r"4 tensors of Conv1D \(100 % of the weights\) are not linear layers"):
        LoRAAll().attach(model, list(TASKS), seed=0)


def test_a_model_that_cannot_read_a_text_is_an_error_before_training() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("a cache of another class is needed")

    with pytest.raises(ModelError, match="LlamaForCausalLM cannot read a text: ValueError: a cache of another class"):
        linear_layers(with_mlp(Broken()))
