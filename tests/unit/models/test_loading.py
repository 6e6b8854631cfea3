"""Base models: toys as folders, GGUF files and cached hub snapshots, and every way in which they can be broken."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import DataError, HarnessError, ModelError
from harness.hashing import cache_folder, file_sha256
from harness.models import source
from harness.models.loading import decoder_start_token, identify, load_model, load_tokenizer

LETTERS = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz0123456789", "ab", "cd"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No note of an earlier run, and no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def toy_tokenizer(**special: str) -> Any:
    """A byte-level tokenizer of letters, digits and two merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, [("a", "b"), ("c", "d")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


@pytest.fixture
def make_folder(tmp_path: Path, toy_llama: Callable[..., Any]) -> Callable[..., Path]:
    """Saves a model (default a Llama in float32) and a toy tokenizer as from_pretrained wants them."""

    def make(name: str = "toy", model: Any = None, **special: str) -> Path:
        folder = tmp_path / name
        model = model if model is not None else toy_llama(vocab_size=len(LETTERS)).float()
        model.save_pretrained(folder)
        toy_tokenizer(**(special or {"eos_token": "</s>"})).save_pretrained(folder)
        return folder

    return make


def test_a_folder_is_loaded_frozen_in_eval_mode_with_its_facts(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    loaded = load_model(str(folder), device="cpu")
    assert loaded.dtype == torch.float32
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.n_parameters == sum(np.prod(p.shape) for p in loaded.model.parameters())
    assert (loaded.max_context, loaded.encoder_decoder, loaded.eos_ids) == (256, False, (1, 2))
    assert loaded.tokenizer("abcd")["input_ids"] == [LETTERS.index("ab"), LETTERS.index("cd")]
    assert load_model(str(folder), "bf16", "cpu").model.lm_head.weight.dtype == torch.bfloat16


def test_a_tokenizer_that_needs_no_pad_and_adds_its_own_bos_is_taken_as_it_is(make_folder: Callable[..., Path]) -> None:
    from tokenizers.processors import TemplateProcessing

    folder = make_folder()
    inner = load_tokenizer(str(folder))
    assert inner.pad_token_id is None
    inner.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    inner.save_pretrained(folder)
    assert load_tokenizer(str(folder))("ab")["input_ids"] == [0, LETTERS.index("ab")]


def test_a_prompt_that_will_be_truncated_gives_no_warning_of_transformers(
    make_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer(str(make_folder()))
    tokenizer.model_max_length = 1
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert len(tokenizer("abcd")["input_ids"]) == 2
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.messages == []


def test_an_encoder_decoder_is_known_as_one_and_states_no_limit(make_folder: Callable[..., Path]) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": len(LETTERS), "d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=2))
    loaded = load_model(str(make_folder(model=model)), device="cpu")
    assert loaded.encoder_decoder
    assert loaded.max_context is None
    assert decoder_start_token(loaded) == 2


@pytest.mark.parametrize("stated", [None, [2, 3]])
def test_an_encoder_decoder_that_states_no_single_start_token_is_refused(
    make_folder: Callable[..., Path], stated: list[int] | None
) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=len(LETTERS), d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    model = T5ForConditionalGeneration(config)
    model.generation_config.decoder_start_token_id = stated
    folder = make_folder(model=model)
    with pytest.raises(ModelError, match=r"T5ForConditionalGeneration.*Set decoder_start_token_id in .*json"):
        load_model(str(folder), device="cpu")


def test_the_fingerprint_follows_weights_and_tokenizer_and_nothing_else(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    first = identify(str(folder))
    assert first.label == "toy"
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("more")
    assert identify(str(copy)).fingerprint == first.fingerprint
    rename_token(copy / "tokenizer.json")
    changed = identify(str(copy)).fingerprint
    assert changed != first.fingerprint
    flip_last_byte(copy / "model.safetensors")
    assert identify(str(copy)).fingerprint not in {first.fingerprint, changed}


def test_a_registered_name_is_the_folder_that_its_package_brings(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder()
    monkeypatch.setattr(source, "model_folder", lambda name: folder if name == "small" else None)
    assert identify("small").label == "small"
    assert identify("small").fingerprint == identify(str(folder)).fingerprint
    monkeypatch.setattr(source, "model_folder", lambda name: folder / "gone")
    with pytest.raises(ModelError, match=r"is missing at .*gone"):
        identify("small")


def test_a_hub_id_is_read_from_the_cache_at_its_commit(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--toy"
    shutil.copytree(make_folder(), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert identify("org/toy").fingerprint == COMMIT
    assert identify("org/toy").label == "org/toy"
    assert load_model("org/toy", device="cpu", revision=COMMIT).n_parameters > 0
    with pytest.raises(ModelError, match=r"org/other is neither .*`hf download org/other`"):
        identify("org/other")
    with pytest.raises(ModelError, match="complete in the local cache"):
        load_model("org/toy", revision="f" * 40)


def test_a_gguf_file_computes_what_the_model_did_that_it_was_made_from(
    tmp_path: Path, toy_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_llama(vocab_size=len(LETTERS)).float()
    file = tmp_path / "toy.gguf"
    write_gguf(file, model)
    loaded = load_model(str(file), device="cpu")
    ids = torch.tensor([[3, 4, 5, 9]])
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert loaded.tokenizer("abcd")["input_ids"] == [LETTERS.index("ab"), LETTERS.index("cd")]
    assert identify(str(file)).fingerprint == hashlib.sha256(file.read_bytes()).hexdigest()
    loaded.model.save_pretrained(tmp_path / "saved")  # refused as long as the quantiser's mark is on it
    assert (tmp_path / "saved" / "model.safetensors").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'mtlora-harness\[gguf\]'"):
        load_tokenizer(str(file))


def shortened(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<!DOCTYPE html>")


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_config(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def a_gguf_inside(folder: Path) -> None:
    (folder / "config.json").rename(folder / "toy.gguf")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="strange", auto_map={"AutoConfig": "strange.C", "AutoModelForCausalLM": "strange.M"})
    (folder / "config.json").write_text(json.dumps(config))


def masked_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shortened, r"model.safetensors has \d+ bytes, but its header states \d+"),
        (garbage, "not a safetensors file, or is incomplete"),
        (only_pickles, "pytorch_model.bin only.*refused"),
        (no_config, "no config.json; it holds .*tokenizer.json.*give its base model"),
        (a_gguf_inside, "Give the file itself: .*toy.gguf"),
        (no_weights, "no .safetensors weights"),
        (missing_shard, "lacks model-2.safetensors"),
        (own_code, "needs Python code of its own"),
        (masked_model, "not a language model that generates text: .*BertForMaskedLM"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_broken_folder_is_refused_with_what_to_do(
    damage: Callable[[Path], None], words: str, make_folder: Callable[..., Path]
) -> None:
    folder = make_folder()
    damage(folder)
    with pytest.raises(ModelError, match=words):
        load_model(str(folder), device="cpu")


def test_a_model_without_its_output_head_is_not_given_a_random_one(make_folder: Callable[..., Path]) -> None:
    from transformers import LlamaConfig, LlamaModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = make_folder(model=LlamaModel(LlamaConfig(vocab_size=len(LETTERS), **sizes)))
    with pytest.raises(ModelError, match=r"not a language model .*\['LlamaModel'\]"):
        load_model(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ModelError, match=r"lack 1 of its weights \(lm_head.weight\)"):
        load_model(str(folder))


def test_a_tokenizer_without_eos_is_refused(make_folder: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="no eos token"):
        load_tokenizer(str(make_folder(bos_token="<s>")))


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "model.gguf", "a--b", "~/missing/x"])
def test_a_name_that_nothing_has_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"no model at|neither a path nor a hub id"):
        identify(name)


@pytest.mark.parametrize("kind", ["HTTPError", "OfflineModeIsEnabled"])
def test_a_hub_that_cannot_be_reached_is_an_error_that_says_what_to_do(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost connection is an error of the client's HTTP library, which is not an OSError."""
    import huggingface_hub

    def lost(*_: Any, **__: Any) -> Any:
        raise getattr(huggingface_hub.errors, kind)("no connection")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lost)
    with pytest.raises(ModelError, match=rf"cannot be reached \({kind}\).*hf download org/toy"):
        identify("org/toy")


def test_a_misspelt_registered_name_is_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "plugins", lambda group: {"tiny": None})
    with pytest.raises(ModelError, match="Did you mean 'tiny'"):
        identify("tinny")


def test_a_model_registered_as_something_else_than_a_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import registry

    plugin = registry.Plugin(name="odd", target="harness.errors:ModelError", distribution="toys")
    monkeypatch.setattr(registry, "plugins", lambda group: {"odd": plugin})
    assert registry.model_folder("even") is None
    with pytest.raises(HarnessError, match=r"'odd' is .*not the path of a folder"):
        registry.model_folder("odd")


def test_a_hash_is_remembered_until_size_or_time_of_the_file_change(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("one")
    assert file_sha256(file) == hashlib.sha256(b"one").hexdigest()
    assert not cache_folder().exists()  # too young: it may still change within one tick of the clock
    os.utime(file, ns=(0, 10**18))
    file_sha256(file)
    note = next((cache_folder() / "sha256").iterdir())
    note.write_text("f" * 64)
    assert file_sha256(file) == "f" * 64
    note.write_text("damaged")
    assert file_sha256(file) == hashlib.sha256(b"one").hexdigest()
    file.write_text("two")
    assert file_sha256(file) == hashlib.sha256(b"two").hexdigest()
    with pytest.raises(DataError, match=r"nothing.jsonl cannot be read"):
        file_sha256(tmp_path / "nothing.jsonl")


def rename_token(tokenizer: Path) -> None:
    tokenizer.write_text(tokenizer.read_text().replace('"z"', '"ü"'))


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def write_gguf(file: Path, model: Any) -> None:
    """A Llama as llama.cpp would store it: other names, and the rows of q and k in another order."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(LETTERS)
    writer.add_token_types([3, 3] + [1] * (len(LETTERS) - 2))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        for part, n in heads.items():
            if part in name:
                values = values.reshape(n, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(mapping.get_name(name, (".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
