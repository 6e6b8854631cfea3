"""Toys for tests of generation: models whose texts differ, requests, and transformers' own greedy search."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.data.routes import Routes
from harness.errors import NotFoldable
from harness.generation.generator import Generator
from harness.generation.requests import GenerationRequest
from harness.models.loading import LoadedModel
from methods.cgc_lora import CGCLoRA

EOS = 5
VOCABULARY = 23
MARGIN = 1e-4  # Between the logits of the two likeliest tokens; rounding is far below it, in float32 too.
TASKS = ("add", "copy", "sort")
ROUTES = Routes(TASKS)
KINDS = ["full attention", "sliding window", "encoder-decoder", "another start", "no positions", "local columns"]


def loaded(model: Any, dtype: torch.dtype = torch.float64) -> LoadedModel:
    """A toy as if it had been loaded. Larger weights make its texts differ from row to row.

    Equal bits are promised for equal shapes only. Texts of different batches are compared in float64, where rounding
    is far below the gap between the two likeliest tokens (``reference`` checks the gap).
    """
    model = model.to(dtype).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6)
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = 0
    return LoadedModel(
        model=model,
        tokenizer=SimpleNamespace(eos_token_id=EOS),
        device=torch.device("cpu"),
        dtype=dtype,
        n_parameters=1,
        max_context=None if model.config.is_encoder_decoder else 256,
        encoder_decoder=bool(model.config.is_encoder_decoder),
    )


def toy(kind: str) -> LoadedModel:
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        BloomConfig,
        BloomForCausalLM,
        GPTNeoConfig,
        GPTNeoForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(0)
    if kind == "no positions":
        config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
        return loaded(BloomForCausalLM(config), torch.float32)  # in float64 transformers gives NaN for padded rows
    if kind == "local columns":
        kinds = [[["global", "local"], 1]]
        small = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 6, "max_position_embeddings": 64}
        return loaded(GPTNeoForCausalLM(GPTNeoConfig(vocab_size=VOCABULARY, attention_types=kinds, **small)))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "sliding window":
        sizes["num_key_value_heads"] = 2
        return loaded(MistralForCausalLM(MistralConfig(vocab_size=VOCABULARY, sliding_window=6, **sizes)))
    if kind == "another start":
        sides = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
        sides |= {f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")}
        tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": EOS, "forced_eos_token_id": None}
        config = BartConfig(d_model=32, max_position_embeddings=64, **sides, **tokens, decoder_start_token_id=2)
        config.vocab_size = VOCABULARY
        return loaded(BartForConditionalGeneration(config))
    config = T5Config(vocab_size=VOCABULARY, d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4)
    config.decoder_start_token_id = 3
    return loaded(T5ForConditionalGeneration(config))


def toy_requests(n: int = 32, routes: int = 1) -> list[GenerationRequest]:
    chance = random.Random(1)
    return [
        GenerationRequest(
            id=f"row {i}",
            task=TASKS[i % routes],
            prompt=[chance.randrange(6, VOCABULARY) for _ in range(chance.randrange(1, 20))],
            limit=chance.randrange(1, 24),
        )
        for i in range(n)
    ]


def reference(model: Any, request: GenerationRequest) -> list[int]:
    """transformers' own greedy text of one row, eos included; no token of it is a close decision."""
    ids = torch.tensor([list(request.prompt)])
    told = {"attention_mask": torch.ones_like(ids), "max_new_tokens": request.limit, "do_sample": False}
    found = model.generate(ids, **told, output_logits=True, return_dict_in_generate=True)
    likeliest = torch.cat(found.logits).topk(2).values
    assert (likeliest[:, 0] - likeliest[:, 1]).min() > MARGIN
    out = found.sequences[0].tolist()
    return list(out[1:] if model.config.is_encoder_decoder else out[len(request.prompt) :])


def always(rows: Tensor) -> Any:
    return nullcontext()


def cgc(model: Any) -> Any:
    """An adapter of three tasks that changes every text: its B is random."""
    adapter = CGCLoRA(n_common=2, n_specific=1, expert_rank=2).attach(model, TASKS, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapter.trainable().items():
            if ".B" in name:
                parameter.normal_(0, 0.5)
    return adapter


def run(generator: Generator, requests: Sequence[GenerationRequest]) -> dict[str, tuple[int, ...]]:
    texts: dict[str, tuple[int, ...]] = {}
    generator.run(requests, lambda batch: texts.update({g.id: g.tokens for g in batch}))
    return texts


def forwards(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Sequences, tokens of each and columns that their mask covers, of every forward to come."""
    seen: list[tuple[int, int, int]] = []
    forward = type(loaded.model).forward

    @wraps(forward)
    def noted(self: Any, *args: Any, **arguments: Any) -> Any:
        mask = arguments["attention_mask"]
        ids = arguments["input_ids"]
        seen.append((*ids.shape, ids.shape[1] if mask is None else mask.shape[-1]))
        return forward(self, *args, **arguments)

    monkeypatch.setattr(type(loaded.model), "forward", noted)
    return seen


class Spy:
    """An adapter with some of its answers changed, that notes how it is used."""

    def __init__(self, adapter: Any, *, unfoldable: Sequence[str] = (), choose: Any = None, memory: int = 99) -> None:
        self.adapter, self.unfoldable, self.choose, self.memory = adapter, unfoldable, choose, memory
        self.merges: list[bool] = []
        self.routes: list[int] = []
        self.read_rows: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.adapter, name)

    def fold(self, task: str) -> Any:
        if task in self.unfoldable:
            raise NotFoldable(task)
        return self.adapter.fold(task)

    def apply(self, factors: Mapping[str, Any], *, merge: bool) -> Any:
        self.merges.append(merge)
        return self.adapter.apply(factors, merge=merge)

    def assign(self, prompts: Sequence[Tensor]) -> list[int] | None:
        return [self.choose(p) for p in prompts] if self.choose else None

    def read(self, prompts: Sequence[Tensor], owner: Tensor) -> None:
        assert owner.tolist() == list(range(len(prompts)))
        self.read_rows.append(len(prompts))

    @contextmanager
    def route(self, labels: Tensor) -> Iterator[None]:
        if len(labels) > self.memory:
            raise torch.OutOfMemoryError("toy")
        self.routes.append(len(labels))
        with self.adapter.route(labels):
            yield
