"""An export that PEFT would load to something else is refused, and nothing of it is left."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import ModelError
from harness.export.check import FoldedOutputs, check_with_peft
from harness.export.peft import export_lora
from harness.models.loading import LoadedModel
from harness.testing.toys import TASKS, perturb, toy_model
from methods.lora_all import LoRAAll

TOKENS = torch.arange(3, 15).view(1, 12)
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2}


def checked_export(model: Any, out: Path, spoil: Any = None) -> None:
    """Export a perturbed LoRA with the check; ``spoil`` changes the folder before it."""
    loaded = LoadedModel(
        model=model,
        tokenizer=None,
        device=torch.device("cpu"),
        dtype=torch.float32,
        n_parameters=0,
        max_context=None,
        encoder_decoder=False,
    )
    adapter = LoRAAll(rank=2).attach(model, list(TASKS), seed=0)
    perturb(adapter)
    factors = adapter.fold(TASKS[1])
    inputs = [{"input_ids": TOKENS}]
    with torch.no_grad(), adapter.apply(factors, merge=False):
        expected = FoldedOutputs(inputs=inputs, logits=[model(input_ids=TOKENS, use_cache=False).logits[:, -8:]])
    adapter.detach()

    def check(folder: Path) -> None:
        if spoil is not None:
            spoil(folder)
        check_with_peft(loaded, factors, expected, folder)

    export_lora(model, factors, out, check=check)


def small(kind: str, **sizes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **sizes})
    name = {"CTRL": "CTRLLMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    model = getattr(transformers, name)(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False)


deepseek = functools.partial(
    small, "DeepseekV3", intermediate_size=24, moe_intermediate_size=8, num_attention_heads=2, num_key_value_heads=2,
    n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1,
    q_lora_rank=4, kv_lora_rank=4, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
)  # fmt: skip


def test_an_export_that_peft_loads_exactly_is_kept_and_the_model_is_bare_again(tmp_path: Path) -> None:
    model: Any = toy_model().float()
    before = [name for name, _ in model.named_modules()]
    checked_export(model, tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter_model.safetensors").exists()
    assert [name for name, _ in model.named_modules()] == before


def test_modules_that_peft_renames_are_an_error_that_offers_a_merged_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"leaves out or changes .*mlp\..*--format merged"):
        checked_export(deepseek(), tmp_path / "lora")
    assert not list(tmp_path.iterdir())


def test_a_module_that_peft_refuses_is_an_error_that_says_so(tmp_path: Path) -> None:
    model = small("Mamba", state_size=4)
    with pytest.raises(ModelError, match=r"raises ValueError: .*'out_proj' is incompatible.*--format merged"):
        checked_export(model, tmp_path / "lora")
    assert not list(tmp_path.iterdir())


def test_other_factors_than_the_run_s_are_an_error(tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)

    with pytest.raises(ModelError, match="leaves out or changes 14 of 14 modules"):
        checked_export(toy_model().float(), tmp_path / "lora", spoil)
    assert not list(tmp_path.iterdir())


def test_names_that_are_numbers_are_written_whole_because_blocks_have_them_too(tmp_path: Path) -> None:
    model = small("CTRL", n_embd=16, n_layer=2, n_head=2, dff=24, n_positions=64)
    checked_export(model, tmp_path / "lora")
    targets = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["target_modules"]
    assert "transformer.h.0.ffn.0" in targets
    assert "0" not in targets
