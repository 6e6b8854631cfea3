"""harness export: exported adapters load in stock peft and transformers, and follow the rules of vLLM."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.export.from_run import ExportedLoRA, file_names, serve_command
from harness.export.peft import SERVED_RANKS, BaseName
from harness.pipeline.reopen import open_model

Command = Callable[..., Any]
STRONG = ("--set", "train.lr=0.05", "--set", "train.steps=12")  # far enough from the base that its texts are others


def rows_of(run: Path, task: str, plugin: Path) -> list[tuple[str, str]]:
    """Prompt and predicted text of each test row of a task."""
    data = plugin / "toy_plugin" / "data" / "test.jsonl"
    prompts = {row["id"]: row["prompt"] for row in map(json.loads, data.read_text().splitlines())}
    made = map(json.loads, (run / "predictions" / f"{task}.jsonl").read_text().splitlines())
    return [(prompts[row["id"]], row["text"]) for row in made]


def texts(model: Any, tokenizer: Any, prompts: list[str], limit: int) -> list[str]:
    """Greedy texts by transformers' own generate, one prompt at a time; no token of them is a close decision.

    The run's texts come from batches of other shapes, which may round otherwise.
    """
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            told = {"max_new_tokens": limit, "do_sample": False, "pad_token_id": 0}
            out = model.generate(input_ids=ids, **told, output_logits=True, return_dict_in_generate=True)
        likeliest = torch.cat(out.logits).topk(2).values
        assert (likeliest[:, 0] - likeliest[:, 1]).min() > 1e-4
        found.append(tokenizer.decode(out.sequences[0, ids.shape[1] :], skip_special_tokens=True))
    return found


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        ("cgc_lora", ()),
        ("lora_all", ()),
        pytest.param("moe_lora", (), marks=pytest.mark.long),
        pytest.param("c_poly", ("--set", "train.lr=0.2"), marks=pytest.mark.long),
        pytest.param("mtl_lora", (), marks=pytest.mark.long),
        pytest.param("multi_lora", (), marks=pytest.mark.slow),
        pytest.param("m_lora", (), marks=pytest.mark.slow),
        pytest.param("align_lora", (), marks=pytest.mark.slow),
        pytest.param("merge", (), marks=pytest.mark.long),
        pytest.param("cgc_lora", ("--clusters", "kind"), marks=pytest.mark.long),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(v[:1]),
)
def test_peft_loads_an_exported_task_to_the_run_s_logits_and_texts(
    toy_run: Command, harness: Command, plugin: Path, tmp_path: Path, method: str, extra: tuple[str, ...]
) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = toy_run("--method", method, *STRONG, *extra, "--json")
    run = Path(done.json["directory"])
    made = harness("export", run, "--task", "last", "--out", tmp_path / "lora", "--json")
    assert made.status == 0, made.err
    base = made.json["base"]["name"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "lora"))
    rows = rows_of(run, "last", plugin)
    prompts = [prompt for prompt, _ in rows]
    assert texts(loaded, tokenizer, prompts, 6) == [text for _, text in rows]
    bare = AutoModelForCausalLM.from_pretrained(base)
    assert texts(bare, tokenizer, prompts, 6) != [text for _, text in rows]

    prepared = open_model(run, task="last").prepared
    tokens = tokenizer(prompts[0], return_tensors="pt")["input_ids"]
    with torch.no_grad(), prepared.adapter.route(torch.tensor([list(prepared.tasks).index("last")])):
        routed = prepared.loaded.model(input_ids=tokens).logits
    with torch.no_grad():
        assert (loaded(input_ids=tokens).logits - routed).abs().max() < 1e-4
        assert (bare(input_ids=tokens).logits - routed).abs().max() > 1e-2
        found = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "lora"))  # finds the base model by itself
        assert (found(input_ids=tokens).logits - routed).abs().max() < 1e-4


@pytest.mark.long
def test_an_export_that_peft_would_change_is_refused_with_an_offer_and_written_only_on_request(
    toy_run: Command, harness: Command, toy_model: Path, tmp_path: Path
) -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    base, out = tmp_path / "moe", tmp_path / "lora"
    shutil.copytree(toy_model, base)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 4, "kv_lora_rank": 4, "v_head_dim": 4}
    rotary = {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "n_group": 1, "topk_group": 1}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
    config = DeepseekV3Config(vocab_size=97, eos_token_id=0, **sizes, **heads, **rotary, **experts)
    DeepseekV3ForCausalLM(config).save_pretrained(base)
    made = toy_run("--method", "lora_all", "--model", base)
    assert "% of the weights) are not linear layers" in made.err
    (run,) = (tmp_path / "runs").glob("lora_all-*")
    assert 0 < json.loads((run / "record.json").read_text())["parameters"]["adapted_percent"] < 100
    for which in (("--task", "last"), ("--all",)):
        wrong = harness("export", run, *which, "--out", out)
        assert (wrong.status, "--format merged" in wrong.err, out.exists()) == (1, True, False), wrong.err
    assert harness("export", run, "--task", "last", "--out", out, "--no-check").status == 0
    assert (out / "adapter_config.json").exists()


@pytest.mark.long
def test_a_gpt2_is_exported_as_transformers_has_it_and_its_lora_is_an_expert_of_another_run(
    toy_run: Command, harness: Command, toy_model: Path, plugin: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    base = Path(shutil.copytree(toy_model, tmp_path / "gpt2"))
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=97, **sizes)).save_pretrained(base)
    made = toy_run("--method", "lora_all", "--model", base, *STRONG, "--json")
    assert made.status == 0, made.err
    run = Path(made.json["directory"])
    for form in ("peft", "merged"):
        done = harness("export", run, "--task", "last", "--format", form, "--out", tmp_path / form)
        assert done.status == 0, done.err
    whole = GPT2LMHeadModel.from_pretrained(tmp_path / "merged")
    lora: Any = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), str(tmp_path / "peft"))
    ids = torch.arange(1, 21)[None]
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in (whole, lora, lora.merge_and_unload())]
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits[2], logits[0], rtol=0, atol=1e-4)
    rows = rows_of(run, "last", plugin)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert texts(whole, tokenizer, [prompt for prompt, _ in rows], 6) == [text for _, text in rows]
    expert = ["--set", f"method.experts=last={tmp_path / 'peft'}", "--set", "method.joint=false"]
    again = toy_run("--method", "moa", "--model", base, *expert, "--set", "method.routing=label", "--json")
    assert again.status == 0, again.err
    assert rows_of(Path(again.json["directory"]), "last", plugin) == rows


def test_without_peft_a_note_says_that_the_export_was_not_checked(
    toy_run: Command, harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(toy_run("--method", "lora_all", "--json").json["directory"])
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else found(name, *a))
    made = harness("export", run, "--task", "last", "--out", tmp_path / "lora")
    assert (made.status, "not checked whether PEFT loads the export" in made.err) == (0, True)


@pytest.mark.long
def test_a_merged_export_is_a_whole_model_that_writes_the_same_texts(
    toy_run: Command, harness: Command, plugin: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = Path(toy_run("--method", "cgc_lora", *STRONG, "--json").json["directory"])
    made = harness("export", run, "--task", "colour", "--format", "merged", "--out", tmp_path / "whole")
    assert (made.status, made.out) == (0, f"merged model: {tmp_path / 'whole'}\n"), made.err
    assert "%|" not in made.err  # no progress bars where stderr is not a terminal
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert model.dtype == torch.float32
    rows = rows_of(run, "colour", plugin)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    assert texts(model, tokenizer, [p for p, _ in rows], 6) == [text for _, text in rows]


@pytest.mark.long
@pytest.mark.parametrize(("method", "rank"), [("cgc_lora", 16), ("moe_lora", 16), ("c_poly", 8), ("lorahub", 16)])
def test_all_tasks_leave_with_one_command_that_serves_them(
    toy_run: Command, harness: Command, tmp_path: Path, method: str, rank: int
) -> None:
    fields = {"lorahub": ("steps=2", "shots=1", "exclude_target=false"), "c_poly": ("rank=2",)}.get(method, ())
    keys = [word for field in fields for word in ("--set", f"method.{field}")]
    run = Path(toy_run("--method", method, *keys, "--json").json["directory"])
    out = tmp_path / "served"
    made = harness("export", run, "--all", "--out", out)
    assert made.status == 0, made.err
    words = shlex.split(made.out.splitlines()[-1])
    assert words[:2] == ["vllm", "serve"]
    assert (Path(words[2]) / "config.json").exists()
    assert words[3:6] == ["--enable-lora", "--max-lora-rank", str(rank)]
    folders = dict(pair.split("=") for pair in words[words.index("--lora-modules") + 1 :])
    assert folders == {task: str(out / task) for task in ("colour", "first", "last")}
    readme = (out / "README.md").read_text()
    assert "--lora-modules colour=./colour first=./first last=./last" in readme
    assert "| colour | colour |" in readme
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "colour", "first", "last"]
    linear = {n.rpartition(".")[2] for n in linear_layers(Path(words[2]))}
    for folder in folders.values():
        servable(Path(folder), rank, linear)
    states = [load_file(Path(f) / "adapter_model.safetensors") for f in folders.values()]
    assert any(not torch.equal(states[0][k], states[1][k]) for k in states[0]), "tasks have LoRAs of their own"


def linear_layers(base: Path) -> list[str]:
    return [k.removesuffix(".weight") for k in load_file(base / "model.safetensors") if "proj" in k]


def servable(folder: Path, most: int, linear: set[str]) -> None:
    """What vLLM asks of a LoRA folder, after its own checks: features, ranks, names and shapes of tensors."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] <= most
    assert most in SERVED_RANKS
    assert config["r"] in SERVED_RANKS
    # vLLM knows one scale, lora_alpha / r, and reads neither pattern
    assert (config["rank_pattern"], config["alpha_pattern"], config["lora_alpha"]) == ({}, {}, config["r"])
    assert [config[k] for k in ("use_dora", "use_rslora", "modules_to_save", "bias")] == [False, False, None, "none"]
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        module, factor, weight = name.removeprefix("base_model.model.").rsplit(".", 2)
        assert name.startswith("base_model.model.model.layers.")
        assert module.rpartition(".")[2] in linear & set(config["target_modules"])
        assert weight == "weight"
        assert tensor.shape[{"lora_A": 0, "lora_B": 1}[factor]] == config["r"]


def test_ranks_stay_as_they_are_where_nobody_pads(toy_run: Command, harness: Command, tmp_path: Path) -> None:
    run = Path(toy_run("--method", "lora_all", "--set", "method.rank=3", "--json").json["directory"])
    for extra, rank in (((), 3), (("--pad",), 8)):
        out = tmp_path / f"r{rank}"
        made = harness("export", run, "--task", "last", "--out", out, *extra)
        assert (made.status, "note: the base model is the local folder" in made.err) == (0, True), made.err
        assert json.loads((out / "adapter_config.json").read_text())["r"] == rank
    made = harness("export", run, "--all", "--no-pad", "--out", tmp_path / "all").out
    assert "(rank 3)" in made
    assert "--max-lora-rank 8" in made


@pytest.mark.long
def test_wrong_exports_say_what_to_do_and_write_nothing(toy_run: Command, harness: Command, tmp_path: Path) -> None:
    runs = {m: Path(toy_run("--method", m, *e, "--json").json["directory"]) for m, *e in SOME_RUNS}
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    out, plain = tmp_path / "out", runs["lora_all"]
    for status, said, arguments in (
        (2, "Did you mean 'colour'", (plain, "--task", "color", "--out", out)),
        (2, "no_finetune does not train one", (runs["no_finetune"], "--all", "--out", out)),
        (2, "majority does not train one", (runs["majority"], "--task", "last", "--out", out)),
        (1, "cannot be exported", (runs["moa"], "--all", "--out", out)),
        (1, "exists already", (plain, "--all", "--out", taken)),
        (2, "either --task T or --all", (plain, "--out", out)),
        (2, "either --task T or --all", (plain, "--task", "last", "--all", "--out", out)),
        (2, "--format merged writes a whole model", (plain, "--all", "--format", "merged", "--out", out)),
        (1, "is not a run", (tmp_path, "--all", "--out", out)),
    ):
        wrong = harness("export", *arguments)
        assert (wrong.status, said in wrong.err) == (status, True), wrong.err
        assert not out.exists()
    (taken / "file").unlink()
    assert harness("export", plain, "--task", "last", "--out", taken).status == 0, "an empty folder is as good as none"
    (plain / "adapter" / "adapter.json").unlink()
    wrong = harness("export", plain, "--all", "--out", out)
    assert (wrong.status, "contains no usable adapter" in wrong.err, out.exists()) == (1, True, False)


SOME_RUNS = (("lora_all",), ("no_finetune",), ("majority",), ("moa", "--ablation", "no_label"))


def test_names_are_safe_and_differ() -> None:
    names = file_names(["a/b", "a_b", "A_B", "情感 分析", "..", "x=y,z", "README.md", "third.one"])
    assert list(names.values()) == ["a_b", "a_b-2", "A_B-3", "情感_分析", "_", "x_y_z", "README.md-2", "third.one"]


def test_a_hub_id_is_named_with_its_commit() -> None:
    lora = ExportedLoRA(task="t", name="t", folder=Path("x/t"), rank=9)
    command = serve_command(BaseName(name="org/model", revision="abc"), [lora], None)
    assert command == ("vllm serve org/model --revision abc --enable-lora --max-lora-rank 16 --lora-modules t=./t")
