"""Base models with frozen weights of 4 or 8 bits, on toys; a test skips where the package that quantises is absent."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.spec import TrainConfig
from harness.errors import ModelError
from harness.linear_layers import linear_layers
from harness.models.loading import load_model
from harness.models.quantised import dequantise, is_quantised, linear_modules
from harness.testing.toys import perturb
from methods.cgc_lora import CGCLoRA

NEEDS = {"nf4": "bitsandbytes", "int8": "torchao"}
PRECISIONS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs the package {package}"),
    )
    for name, package in NEEDS.items()
]
TASKS = ["a", "b", "c"]
both = pytest.mark.parametrize("precision", PRECISIONS)


def layer_of(loaded: Any) -> Any:
    return loaded.model.model.layers[0].mlp.up_proj


@both
def test_counts_are_those_of_the_model_before_its_weights_were_packed(toy_model: Path, precision: Any) -> None:
    plain, packed = load_model(str(toy_model), "fp32", "cpu"), load_model(str(toy_model), precision, "cpu")
    assert packed.n_parameters == plain.n_parameters
    assert linear_layers(packed.model).parameters == linear_layers(plain.model).parameters
    assert (plain.quantised, packed.quantised) == (None, precision)
    assert (plain.merges, packed.merges) == (True, False)
    assert packed.dtype == torch.float32
    assert not any(p.requires_grad for p in packed.model.parameters())
    assert [is_quantised(layer) for layer in linear_modules(packed.model)] == [True] * 14 + [False]  # not the head


@both
def test_the_memory_of_weights_is_that_of_their_bits_and_scales(toy_model: Path, precision: Any) -> None:
    """A weight of (64, 32): one scale per output, or per 64 weights one of 8 bits and its share of the second level."""
    plain, packed = load_model(str(toy_model), "fp32", "cpu"), load_model(str(toy_model), precision, "cpu")
    n = sum(layer.in_features * layer.out_features for layer in linear_modules(plain.model)[:-1])
    outputs = sum(layer.out_features for layer in linear_modules(plain.model)[:-1])
    rest = plain.weight_bytes - 4 * n
    assert plain.weight_bytes == 4 * plain.n_parameters
    if precision == "int8":
        scales = 4 * outputs
        assert n + scales <= packed.weight_bytes - rest <= n + scales + 4 * outputs  # zero points may be stored too
    else:
        tables = 14 * (16 + 256 + 4) * 4  # the codes of both levels, and the scales of the second
        assert n / 2 + n / 64 <= packed.weight_bytes - rest <= n / 2 + n / 64 + tables


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the package torchao")
def test_int8_rounds_each_output_to_127_levels_of_its_largest_weight(toy_model: Path) -> None:
    plain, packed = load_model(str(toy_model), "fp32", "cpu"), load_model(str(toy_model), "int8", "cpu")
    weight = layer_of(plain).weight
    dequantise(packed.model)
    step = weight.abs().amax(1, keepdim=True) / 127.5
    assert ((layer_of(packed).weight - weight).abs() / step).max() < 0.51


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs the package bitsandbytes")
def test_nf4_has_the_16_levels_of_the_paper_in_each_block(toy_model: Path) -> None:
    """The levels of arXiv:2305.14314, appendix E, times the block's scale, which is quantised too."""
    levels = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    levels += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    plain, packed = load_model(str(toy_model), "fp32", "cpu"), load_model(str(toy_model), "nf4", "cpu")
    dequantise(packed.model)
    rounded, weight = (layer_of(m).weight.flatten().view(-1, 64) for m in (packed, plain))
    scale = rounded.abs().amax(1, keepdim=True)
    assert (scale / weight.abs().amax(1, keepdim=True) - 1).abs().max() < 0.1
    nearest = torch.tensor(levels)[((rounded / scale)[..., None] - torch.tensor(levels)).abs().argmin(-1)]
    assert (rounded / scale - nearest).abs().max() < 1e-5


@both
def test_a_dequantised_model_computes_what_the_quantised_one_does(toy_model: Path, precision: Any) -> None:
    loaded = load_model(str(toy_model), precision, "cpu")
    ids = torch.randint(97, (2, 9), generator=torch.Generator().manual_seed(0))
    before = loaded.model(input_ids=ids).logits
    dequantise(loaded.model)
    assert (loaded.model(input_ids=ids).logits - before).abs().max() < 1e-6
    assert not any(map(is_quantised, linear_modules(loaded.model)))
    assert getattr(loaded.model.config, "quantization_config", None) is None


@both
def test_an_adapter_is_folded_as_it_is_routed_and_merging_is_refused(toy_model: Path, precision: Any) -> None:
    loaded = load_model(str(toy_model), precision, "cpu")
    adapter = CGCLoRA().attach(loaded.model, TASKS, seed=0)
    perturb(adapter)
    ids = torch.randint(97, (2, 9), generator=torch.Generator().manual_seed(0))
    with adapter.route(torch.tensor([1, 1])):
        loss = loaded.model(input_ids=ids).logits
        loss.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.trainable().values())
    factors = adapter.fold("b")
    with torch.no_grad(), adapter.apply(factors, merge=False):
        folded = loaded.model(input_ids=ids).logits
    with torch.no_grad(), adapter.off():
        bare = loaded.model(input_ids=ids).logits
    assert (bare - loss).abs().max() > 1e-2
    assert (folded - loss).abs().max() < 1e-5
    with pytest.raises(ValueError, match="is quantised"), adapter.apply(factors, merge=True):
        pass


@both
def test_a_token_does_not_depend_on_the_other_sequences_of_a_batch(toy_model: Path, precision: Any) -> None:
    loaded = load_model(str(toy_model), precision, "cpu")
    ids = torch.randint(97, (8, 9), generator=torch.Generator().manual_seed(0))
    together = loaded.model(input_ids=ids).logits
    alone = torch.cat([loaded.model(input_ids=row[None]).logits for row in ids])
    assert (together - alone).abs().max() < 1e-5


@both
def test_a_quantised_model_is_not_quantised_again(toy_model: Path, tmp_path: Path, precision: Any) -> None:
    import json
    import shutil

    folder = tmp_path / "gptq"
    shutil.copytree(toy_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"quantised already \(gptq.*leave train.precision={precision} out"):
        load_model(str(folder), precision, "cpu")


@both
def test_the_transposed_layers_of_gpt2_are_refused(
    toy_model: Path, toy_llama: Callable[..., Any], tmp_path: Path, precision: Any
) -> None:
    import shutil

    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    shutil.copytree(toy_model, folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 97}
    GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=0, bos_token_id=0)).save_pretrained(folder)
    with pytest.raises(ModelError, match=rf"has Conv1D layers: train.precision={precision} .*Give bf16 or fp32"):
        load_model(str(folder), precision, "cpu")


@pytest.mark.parametrize(("precision", "package"), NEEDS.items())
def test_a_missing_package_is_named_with_its_extra(
    toy_model: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == package else find(name, *a))
    with pytest.raises(ModelError, match=rf"needs the package {package}: pip install 'mtlora-harness\[{precision}\]'"):
        load_model(str(toy_model), precision, "cpu")


@pytest.mark.parametrize("precision", list(NEEDS))
def test_compiling_a_quantised_model_is_refused(precision: Any) -> None:
    with pytest.raises(ValueError, match=rf"does not support train.precision={precision}"):
        TrainConfig(precision=precision, compile=True)
