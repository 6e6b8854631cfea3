"""The speed of a finished run's evaluation: our generator, and lm-eval's HF model with the same adapter.

Run by hand: ``python benchmarks/generation_of_run.py RUN``. Both get the same prompts and limits, task by task, with
the task's folded adapter: ours as an evaluation applies it, lm-eval's beside the weights. Measured in one process in
interleaved rounds; read the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from generation import lm_eval_model, lm_eval_texts, now, ratio
from tabulate import tabulate

from harness.data.splits import group
from harness.generation.predictions import PredictionKey
from harness.generation.requests import Generated, GenerationRequest
from harness.pipeline.predict import generator
from harness.pipeline.prepare import Prepared, train_examples
from harness.pipeline.reopen import load, reopen
from harness.pipeline.resolve import Resolved

Texts = dict[PredictionKey, str]


def main() -> None:
    options = arguments()
    logging.disable(logging.WARNING)
    finished = reopen(options.run, options.data, options.model)
    spec = finished.resolved.spec
    train = spec.train.model_copy(update={"precision": options.precision})
    evaluation = spec.eval.model_copy(update={"batch_tokens": options.batch_tokens or spec.eval.batch_tokens})
    spec = spec.model_copy(update={"train": train, "eval": evaluation})
    resolved = dataclasses.replace(finished.resolved, spec=spec)
    prepared = load(finished.run, resolved, train_examples(resolved))
    requests = questions(resolved, prepared, options.per_task, options.tasks)
    loaded = prepared.loaded
    print(f"{finished.run.name}, {loaded.dtype}, {loaded.device}, {torch.get_num_threads()} threads")
    compare(resolved, prepared, requests, options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run whose method folds")
    parser.add_argument("--data", help="new location of its data, if they have moved")
    parser.add_argument("--model", help="new location of its model, if it has moved")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--batch-tokens", type=int, help="default: as in the run")
    parser.add_argument("--per-task", type=int, default=32, help="examples of each task")
    parser.add_argument("--tasks", nargs="+", help="default: all of the run")
    parser.add_argument("--lm-eval-batch", type=int, nargs="+", default=[1, 16], help="1 is lm-eval's default")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def questions(resolved: Resolved, prepared: Prepared, n: int, tasks: Sequence[str] | None) -> list[GenerationRequest]:
    """The first n examples of each task whose prompts lm-eval, which takes texts, reads as the same tokens."""
    tokenizer, encoder, split = prepared.loaded.tokenizer, prepared.encoder, resolved.spec.eval.split
    rows = group(resolved.suite.read(resolved.source, split), split, list(prepared.tasks))
    found = []
    for task in prepared.tasks:
        examples = rows.of(task) if tasks is None or task in tasks else []
        kept: list[GenerationRequest] = []
        for example, encoded in zip(examples, encoder.prompts(examples), strict=True):
            prompt = encoded.tokens
            if list(tokenizer(tokenizer.decode(prompt))["input_ids"]) == list(prompt) and len(kept) < n:
                limit = encoder.limit(task, prompt)
                kept.append(GenerationRequest(id=example.id, task=task, prompt=prompt, limit=limit))
        found += kept
    return found


def compare(
    resolved: Resolved, prepared: Prepared, requests: Sequence[GenerationRequest], options: argparse.Namespace
) -> None:
    n_tokens: dict[PredictionKey, int] = {}
    ways: dict[str, Callable[[Sequence[GenerationRequest]], Texts]] = {
        "ours": lambda r: ours(resolved, prepared, r, n_tokens)
    }
    for size in options.lm_eval_batch:
        ways[f"lm-eval, batch {size}"] = lambda r, size=size: theirs(prepared, r, size)  # type: ignore[misc]
    seconds: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in ways}
    texts: dict[str, Texts] = {name: {} for name in ways}
    by_task = {task: [r for r in requests if r.task == task] for task in dict.fromkeys(r.task for r in requests)}
    for _ in range(options.rounds):
        for task, mine in by_task.items():
            for name, way in ways.items():
                started = now(prepared.loaded)
                texts[name].update(way(mine))
                seconds[name][task].append(now(prepared.loaded) - started)
    read, generated = sum(len(r.prompt) for r in requests), sum(n_tokens.values())
    print(f"{len(requests)} prompts of {read} tokens in all; {generated} tokens generated\n")
    table = []
    for task, mine in by_task.items():
        lengths = sorted(n_tokens[PredictionKey(task, r.id)] for r in mine)
        row = [task, len(mine), f"{lengths[len(lengths) // 2]} to {lengths[-1]}"]
        table.append([*row, *figures(seconds, {task})])
    table.append(["all", len(requests), "", *figures(seconds, set(by_task))])
    headers = [
        "task",
        "examples",
        "tokens generated (median to maximum)",
        "ours (s)",
        *(f"{name} / ours" for name in list(ways)[1:]),
    ]
    print(tabulate(table, headers=headers, floatfmt=".2f"))
    for name in list(ways)[1:]:
        equal = sum(texts[name][key] == text for key, text in texts["ours"].items())
        print(f"{name}: {equal} of {len(requests)} texts equal to ours")


def figures(seconds: Mapping[str, Mapping[str, Sequence[float]]], tasks: set[str]) -> list[float]:
    """Our median seconds for these tasks, then the others' time over ours, the median of the rounds."""
    sums = {name: [sum(s) for s in zip(*(by[task] for task in tasks), strict=True)] for name, by in seconds.items()}
    return [statistics.median(sums["ours"]), *(ratio(s, sums["ours"]) for name, s in sums.items() if name != "ours")]


def ours(
    resolved: Resolved, prepared: Prepared, requests: Sequence[GenerationRequest], n_tokens: dict[PredictionKey, int]
) -> Texts:
    texts: Texts = {}

    def keep(batch: Sequence[Generated]) -> None:
        for one in batch:
            texts[one.key] = prepared.loaded.tokenizer.decode(list(one.tokens), skip_special_tokens=True)
            n_tokens[one.key] = len(one.tokens) + (not one.truncated)

    generator(resolved, prepared).run(requests, keep)
    return texts


def theirs(prepared: Prepared, requests: Sequence[GenerationRequest], size: int) -> Texts:
    judge = lm_eval_model(prepared.loaded, size)
    with prepared.adapter.apply(prepared.adapter.fold(requests[0].task), merge=False):
        texts = lm_eval_texts(prepared.loaded, judge, requests)
    return {PredictionKey(r.task, r.id): text for r, text in zip(requests, texts, strict=True)}


if __name__ == "__main__":
    main()
