"""Toys for every test: a random two-layer Llama, a suite about toys from an installed plug-in, the shared data."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, for research use only and never part of the project."""
    folder = Path(os.environ.get("MTLORA_SHARED", PROJECT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set MTLORA_SHARED)")
    return folder


@pytest.fixture
def hf_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of data sets that goes away with the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def toy_llama() -> Callable[..., Any]:
    """A factory of small random Llama models in float64, equal for equal arguments."""

    def make(seed: int = 0, **config: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        sizes = {
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
        }
        model = LlamaForCausalLM(LlamaConfig(**{**sizes, **config})).to(torch.float64)
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the third-party package of tests/plugin has been installed; it is on sys.path."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(PROJECT / "tests" / "plugin")], check=True, timeout=120)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    return folder


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random small Llama and a tokenizer of characters."""
    import torch
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    vocabulary = {"<eos>": 0, "<unk>": 1} | {chr(c): c - 30 for c in range(32, 127)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("."), behavior="isolated")
    from tokenizers.decoders import Fuse

    tokenizer.decoder = Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=False
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def count_calls() -> Callable[..., int]:
    """``count_calls(function, *arguments)``: how many calls of Python and C functions the function makes.

    A measure of work that does not depend on the machine. What happens inside one C function, such as a regular
    expression's search, is one call: a text long enough never to end in quadratic time covers that.
    """

    def count(function: Callable[..., Any], *arguments: Any) -> int:
        calls = 0

        def profile(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            function(*arguments)
        finally:
            sys.setprofile(before)
        return calls

    return count


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def harness(plugin: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The installed command in this process: ``harness("run", "--method", ...)``."""
    from harness.cli.main import main

    def call(*arguments: Any) -> Result:
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return Result(status=status, out=captured.out, err=captured.err)

    return call


@pytest.fixture
def start(plugin: Path) -> Callable[..., subprocess.Popen[str]]:
    """The installed command in a process of its own, for tests about signals and locks."""

    def call(*arguments: Any, **environment: str) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).parent / "harness"), *map(str, arguments)]
        env = {**os.environ, "PYTHONPATH": str(plugin), "OMP_NUM_THREADS": "1", **environment}
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return call


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path, Callable[[], None]], Path]:
    """``made_once(key, folder, make)``: ``make()`` fills the folder for the first test with this key.

    Tests after it get a copy: a training takes seconds, and tests change the runs that they are about.
    """
    kept = tmp_path_factory.mktemp("made_once")

    def fill(key: str, folder: Path, make: Callable[[], None]) -> Path:
        if (kept / key).exists():
            shutil.copytree(kept / key, folder)
        else:
            make()
            shutil.copytree(folder, kept / key)
        return folder

    return fill


@pytest.fixture
def toy_run(harness: Callable[..., Result], toy_model: Path, tmp_path: Path) -> Callable[..., Result]:
    """A quick run on the toys: ``toy_run("--method", "lora_all", ...)`` into tmp_path/runs."""

    def call(*arguments: Any) -> Result:
        quick = ["--suite", "toys", "--model", toy_model, "--out", tmp_path / "runs", "--set", "train.steps=4"]
        return harness("run", *quick, "--set", "eval.max_new_tokens=6", "--set", "eval.per_task=4", *arguments)

    return call
