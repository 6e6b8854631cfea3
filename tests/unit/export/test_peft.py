"""What is exported loads in stock PEFT and gives the routed model's logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.errors import HarnessError, ModelError, StoreError
from harness.export.merged import export_merged, merge_into
from harness.export.peft import SERVED_RANKS, export_lora
from harness.method import LoRAFactors
from harness.testing.toys import TASKS, perturb, toy_model
from methods.c_poly import CPoly
from methods.cgc_lora import CGCLoRA
from methods.lora_single import LoRASingle
from methods.lorahub import LoRAHub
from methods.no_finetune import NoFinetune

TOKENS = torch.arange(1, 15).view(2, 7)


def exported(method: Any, out: Path, dtype: torch.dtype = torch.float64, **options: Any) -> Tensor:
    """Export the second task; the routed logits."""
    model = toy_model().to(dtype)
    adapter = method.attach(model, list(TASKS), seed=0)
    perturb(adapter)
    export_lora(model, adapter.fold(TASKS[1]), out, **options)
    with adapter.route(torch.tensor([1, 1])):
        logits: Tensor = model(input_ids=TOKENS).logits.detach()
    return logits


def by_peft(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    from peft import PeftModel

    model: Any = toy_model().to(dtype)
    return PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)


@pytest.mark.parametrize(
    "method",
    [LoRASingle(rank=3), CGCLoRA(), CGCLoRA(targets="q_proj,v_proj"), CPoly(), LoRAHub(merge="output", rank=2)],
    ids=lambda method: f"{type(method).__name__}-{method.targets}",
)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-7), (torch.float32, 1e-4)], ids=["64", "32"])
def test_peft_loads_an_export_to_the_same_logits(method: Any, dtype: torch.dtype, close: float, tmp_path: Path) -> None:
    routed = exported(method, tmp_path / "lora", dtype)
    with torch.no_grad():
        loaded = by_peft(tmp_path / "lora", dtype)(input_ids=TOKENS).logits
    assert (loaded - routed).abs().max() < close
    bare = toy_model().to(dtype)(input_ids=TOKENS).logits
    assert (routed - bare).abs().max() > 100 * close


def test_every_merged_weight_of_peft_is_the_base_plus_the_fold(tmp_path: Path) -> None:
    model = toy_model()
    adapter = CGCLoRA().attach(model, list(TASKS), seed=0)
    perturb(adapter)
    factors = adapter.fold(TASKS[2])
    export_lora(model, factors, tmp_path / "lora")
    merged, base = by_peft(tmp_path / "lora").merge_and_unload(), toy_model()
    for name, lora in factors.items():
        expected = base.get_submodule(name).weight + lora.b @ lora.a
        assert (merged.get_submodule(name).weight - expected).abs().max() < 1e-10, name


def test_modules_of_several_ranks_keep_their_scale(tmp_path: Path) -> None:
    model = toy_model()
    generator = torch.Generator().manual_seed(0)
    factors = {
        f"model.layers.{layer}.self_attn.{name}": LoRAFactors(
            a=torch.randn(rank, 16, generator=generator, dtype=torch.float64),
            b=torch.randn(16, rank, generator=generator, dtype=torch.float64),
        )
        for layer in (0, 1)
        for name, rank in (("q_proj", 2), ("v_proj", 2 + layer))
    }
    export_lora(model, factors, tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 2
    assert config["rank_pattern"] == config["alpha_pattern"] == {"model.layers.1.self_attn.v_proj": 3}
    assert config["target_modules"] == ["q_proj", "v_proj"]
    merged = by_peft(tmp_path / "lora").merge_and_unload()
    for name, lora in factors.items():
        expected = toy_model().get_submodule(name).weight + lora.b @ lora.a
        assert (merged.get_submodule(name).weight - expected).abs().max() < 1e-10, name


def test_some_layers_of_a_kind_are_named_one_by_one(tmp_path: Path) -> None:
    routed = exported(CGCLoRA(targets="model.layers.1.*"), tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert all(name.startswith("model.layers.1.") for name in config["target_modules"])
    with torch.no_grad():
        assert (by_peft(tmp_path / "lora")(input_ids=TOKENS).logits - routed).abs().max() < 1e-7


def test_a_padded_rank_is_one_that_servers_take_and_changes_nothing(tmp_path: Path) -> None:
    routed = exported(LoRASingle(rank=9), tmp_path / "lora", pad_to=SERVED_RANKS)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (16, 16, {})
    with torch.no_grad():
        assert (by_peft(tmp_path / "lora")(input_ids=TOKENS).logits - routed).abs().max() < 1e-7
    with pytest.raises(HarnessError, match="rank 9 is above 8"):
        exported(LoRASingle(rank=9), tmp_path / "other", pad_to=[4, 8])


def test_an_export_never_writes_over_another_and_leaves_no_half_folder(tmp_path: Path) -> None:
    exported(LoRASingle(rank=2), tmp_path / "lora")
    before = (tmp_path / "lora" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(StoreError, match="lora exists already"):
        exported(LoRASingle(rank=3), tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter_model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["lora"]
    with pytest.raises(HarnessError, match="nothing to export"):
        export_lora(toy_model(), NoFinetune().attach(toy_model(), ["a"], seed=0).fold("a"), tmp_path / "none")
    assert [p.name for p in tmp_path.iterdir()] == ["lora"]


def test_a_merged_model_loads_without_peft_to_the_same_logits(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = toy_model()
    adapter = CGCLoRA().attach(model, list(TASKS), seed=0)
    perturb(adapter)
    with adapter.route(torch.tensor([0, 0])):
        routed = model(input_ids=TOKENS).logits.detach()
    factors = adapter.fold(TASKS[0])
    with pytest.raises(HarnessError, match="detach its adapter before merging"):
        merge_into(model, factors)
    adapter.detach()
    export_merged(model, factors, None, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float64)
    assert (loaded(input_ids=TOKENS).logits - routed).abs().max() < 1e-7


def test_a_tied_weight_is_not_merged_into() -> None:
    model: Any = toy_model()
    layer = model.model.layers[0].self_attn.q_proj
    model.model.layers[1].self_attn.q_proj.weight = layer.weight
    before = layer.weight.clone()
    lora = LoRAFactors(a=torch.ones(1, 16, dtype=torch.float64), b=torch.ones(16, 1, dtype=torch.float64))
    with pytest.raises(ModelError, match="shares its weight"):
        merge_into(model, {"model.layers.0.self_attn.q_proj": lora})
    assert torch.equal(layer.weight, before)


def test_an_encoder_decoder_s_export_loads_too(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import T5Config, T5ForConditionalGeneration

    def make() -> Any:
        torch.manual_seed(0)
        sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
        model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
        return model.eval().requires_grad_(False)

    model = make()
    adapter = LoRAHub(rank=2).attach(model, list(TASKS), seed=0)
    perturb(adapter)
    inputs = {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :3]}
    with adapter.route(torch.tensor([2, 2])):
        routed = model(**inputs).logits.detach()
    export_lora(model, adapter.fold(TASKS[2]), tmp_path / "lora")
    loaded = PeftModel.from_pretrained(make(), str(tmp_path / "lora"))
    assert loaded.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    with torch.no_grad():
        assert (loaded(**inputs).logits - routed).abs().max() < 1e-4
    assert (make()(**inputs).logits - routed).abs().max() > 1e-2
