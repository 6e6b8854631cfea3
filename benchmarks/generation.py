"""The speed of generation: base, folded and routed, next to transformers' generate and lm-eval's own HF model.

Run by hand: ``python benchmarks/generation.py --model tiny`` (a folder, a hub id or a .gguf file). Everything is
measured in one process in interleaved rounds; read the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from harness.data.routes import Routes
from harness.generation.decoding import decode
from harness.generation.generator import Generator
from harness.generation.requests import Generated, GenerationRequest
from harness.method import Adapter, AdapterMethod, LoRAFactors, Routing
from harness.models.loading import LoadedModel, load_model
from harness.registry import method_class

TASKS = ("first", "second", "third", "fourth")
ROUTES = Routes(TASKS)
WORDS = ("time", "person", "year", "way", "day", "thing", "hand", "part", "child", "eye", "place", "work", "week")


class Unmerged:
    """An adapter as a ``Routing`` whose folds stay beside the weights, whatever their precision."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.route, self.off, self.fold = adapter.route, adapter.off, adapter.fold
        self.assign, self.read = adapter.assign, adapter.read

    def apply(self, factors: Mapping[str, LoRAFactors], *, merge: bool) -> AbstractContextManager[None]:
        return self.adapter.apply(factors, merge=False)


def main() -> None:
    options = arguments()
    logging.disable(logging.WARNING)
    loaded = load_model(options.model, options.precision, options.device)
    method = method_class(options.method)()
    if not isinstance(method, AdapterMethod):
        raise SystemExit(f"{options.method} has no adapter: choose a method that folds (harness list)")
    adapter = method.attach(loaded.model, TASKS, seed=0)
    torch.manual_seed(0)
    for name, parameter in adapter.trainable().items():
        if ".B" in name:
            torch.nn.init.normal_(parameter, 0, options.strength)
    print(f"{options.model}, {options.method}, {loaded.dtype}, {loaded.device}, {torch.get_num_threads()} threads\n")
    steps_table(loaded, adapter, options)
    throughput_table(loaded, adapter, options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--method", default="cgc_lora", help="a registered method that folds")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--strength", type=float, default=0.01, help="standard deviation of the adapter's B")
    parser.add_argument("--batch", type=int, default=16, help="sequences of the equal-length measurement")
    parser.add_argument("--tokens", type=int, default=48, help="tokens decoded in it")
    parser.add_argument("--rows", type=int, default=64, help="prompts of the throughput measurement")
    parser.add_argument("--limit", type=int, default=48, help="maximum number of tokens generated for each")
    parser.add_argument("--naive-batch", type=int, default=16, help="sequences in transformers' and lm-eval's batches")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-lm-eval", action="store_true")
    return parser.parse_args()


def steps_table(loaded: LoadedModel, adapter: Adapter, options: argparse.Namespace) -> None:
    """Seconds per decoded token at forced equal lengths, and per change of task."""
    endless = replace(loaded, tokenizer=SimpleNamespace(eos_token_id=-1))
    prompts = [[10 + i % 50 for i in range(64)]] * options.batch
    labels = torch.arange(options.batch) % len(TASKS)
    factors = adapter.fold(TASKS[0])
    merges = {"merged": True, "unmerged": False} if loaded.dtype == torch.float32 else {"unmerged": False}
    contexts: dict[str, Callable[[], AbstractContextManager[None]]] = {"base": adapter.off}
    for name, merge in merges.items():
        contexts[f"folded, {name}"] = lambda merge=merge: adapter.apply(factors, merge=merge)
    contexts["routed"] = lambda: adapter.route(labels)
    seconds: dict[str, list[float]] = {name: [] for name in contexts}
    eos, loaded.model.generation_config.eos_token_id = loaded.model.generation_config.eos_token_id, None
    for _ in range(options.rounds):
        for name, context in contexts.items():
            with context():
                one = timed(loaded, lambda: decode(endless, prompts, [1] * len(prompts), always))
                many = timed(loaded, lambda: decode(endless, prompts, [1 + options.tokens] * len(prompts), always))
            seconds[name].append((many - one) / options.tokens)
    loaded.model.generation_config.eos_token_id = eos
    base = seconds["base"]
    table = [[name, 1e3 * statistics.median(s), ratio(s, base)] for name, s in seconds.items()]
    print(f"One decoded token of {options.batch} sequences at equal lengths")
    print(tabulate(table, headers=["", "ms", "/ base"], floatfmt=("", ".2f", ".3f")), end="\n\n")
    switches = [
        [name, 1e3 * statistics.median(switch(loaded, adapter, merge) for _ in range(5))]
        for name, merge in merges.items()
    ]
    print(tabulate(switches, headers=["change of task", "ms"], floatfmt=("", ".2f")), end="\n\n")


def throughput_table(loaded: LoadedModel, adapter: Adapter, options: argparse.Namespace) -> None:
    """Tokens per second for prompts of mixed lengths and predictions that end by themselves."""
    requests = [replace(r, limit=options.limit) for r in mixed_requests(loaded, options.rows)]
    factors = adapter.fold(TASKS[0])
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "ours, folded": lambda: ours(loaded, adapter, requests),
        "ours, unmerged": lambda: ours(loaded, Unmerged(adapter), requests),
        "transformers generate, unmerged": lambda: transformers_texts(loaded, requests, options.naive_batch),
    }
    within = {"transformers generate, unmerged": lambda: adapter.apply(factors, merge=False)}
    if not options.no_lm_eval:
        judge = lm_eval_model(loaded, options.naive_batch)
        ways["lm-eval HFLM, unmerged"] = lambda: tokenised(loaded, lm_eval_texts(loaded, judge, requests))
        within["lm-eval HFLM, unmerged"] = lambda: adapter.apply(factors, merge=False)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[list[int]]] = {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            with within.get(name, nullcontext)():
                started = now(loaded)
                texts[name] = way()
                seconds[name].append(now(loaded) - started)
    first = texts["ours, folded"]
    tokens = sum(map(len, first))
    table = [
        [name, tokens / statistics.median(s), ratio(seconds["ours, folded"], s), same(texts[name], first)]
        for name, s in seconds.items()
    ]
    lengths = sorted(map(len, first))
    print(
        f"{len(requests)} prompts of {min(len(r.prompt) for r in requests)} to {max(len(r.prompt) for r in requests)} "
        f"tokens, predictions of {lengths[0]} to {lengths[-1]} (median {lengths[len(lengths) // 2]})"
    )
    headers = ["", "tokens/s", "our time / other", "same texts"]
    print(tabulate(table, headers=headers, floatfmt=("", ".0f", ".3f")))


def mixed_requests(loaded: LoadedModel, n: int) -> list[GenerationRequest]:
    chance = random.Random(0)
    requests = []
    for i in range(n):
        words = " ".join(chance.choice(WORDS) for _ in range(min(round(chance.lognormvariate(3, 0.8)) + 1, 80)))
        text = f"Which of these words is the longest, and how many are there? {words}\nAnswer in one sentence."
        if loaded.tokenizer.chat_template:
            turn = [{"role": "user", "content": text}]
            text = loaded.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        requests.append(
            GenerationRequest(id=f"{i:05d}", task=TASKS[0], prompt=loaded.tokenizer(text)["input_ids"], limit=1)
        )
    return requests


def ours(loaded: LoadedModel, routing: Routing, requests: Sequence[GenerationRequest]) -> list[list[int]]:
    texts: dict[str, tuple[int, ...]] = {}

    def keep(batch: Sequence[Generated]) -> None:
        texts.update({g.id: g.tokens for g in batch})

    Generator(loaded, routing, ROUTES, folds=True, batch_tokens=8192).run(requests, keep)
    return [list(texts[r.id]) for r in requests]


@torch.no_grad()
def transformers_texts(loaded: LoadedModel, requests: Sequence[GenerationRequest], size: int) -> list[list[int]]:
    texts = []
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        width = max(len(r.prompt) for r in batch)
        rows = [[loaded.eos_ids[0]] * (width - len(r.prompt)) + list(r.prompt) for r in batch]
        mask = [[0] * (width - len(r.prompt)) + [1] * len(r.prompt) for r in batch]
        out = loaded.model.generate(
            torch.tensor(rows, device=loaded.device),
            attention_mask=torch.tensor(mask, device=loaded.device),
            max_new_tokens=max(r.limit for r in batch),
            do_sample=False,
            pad_token_id=loaded.eos_ids[0],
            eos_token_id=list(loaded.eos_ids),
        )
        texts += [before_eos(row, loaded.eos_ids) for row in out[:, width:].tolist()]
    return texts


def lm_eval_model(loaded: LoadedModel, size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=size)


def lm_eval_texts(loaded: LoadedModel, judge: Any, requests: Sequence[GenerationRequest]) -> list[str]:
    """lm-eval takes and returns texts."""
    from lm_eval.api.instance import Instance

    prompts = [loaded.tokenizer.decode(r.prompt) for r in requests]
    asked = [
        Instance("generate_until", {}, (p, {"until": [], "max_gen_toks": r.limit, "do_sample": False}), i)
        for i, (p, r) in enumerate(zip(prompts, requests, strict=True))
    ]
    return list(judge.generate_until(asked, disable_tqdm=True))


def tokenised(loaded: LoadedModel, texts: Sequence[str]) -> list[list[int]]:
    return [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def before_eos(row: list[int], eos: Sequence[int]) -> list[int]:
    return row[: next((i for i, token in enumerate(row) if token in eos), len(row))]


def switch(loaded: LoadedModel, adapter: Adapter, merge: bool) -> float:
    def change() -> None:
        with adapter.apply(adapter.fold(TASKS[1]), merge=merge):
            pass

    return timed(loaded, change)


def timed(loaded: LoadedModel, work: Callable[[], object]) -> float:
    started = now(loaded)
    work()
    return now(loaded) - started


def now(loaded: LoadedModel) -> float:
    """Seconds: wall time on a GPU, this process's CPU time on a CPU, which other programs affect less."""
    if loaded.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios of each round, because other programs slow both down."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def same(texts: Sequence[list[int]], others: Sequence[list[int]]) -> str:
    return f"{sum(a == b for a, b in zip(texts, others, strict=True))} of {len(others)}"


def always(rows: Tensor) -> AbstractContextManager[None]:
    return nullcontext()


if __name__ == "__main__":
    main()
