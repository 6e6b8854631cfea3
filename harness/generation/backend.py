"""Texts for every test row: generated in batches that are on disk as soon as they end, never made twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from harness.data.encoding import Encoder
from harness.data.rows import Rows
from harness.generation.generator import Generated, Generator, Request
from harness.generation.predictions import Answers
from harness.method import Baseline
from harness.runtime.signals import StopFlag
from harness.store.record import GenerationSummary


def answer_without_model(method: Baseline, answers: Answers, train: Rows | None, stop: StopFlag) -> None:
    """The predictions of a baseline for each task, from the training examples of the task."""
    done = answers.recover()
    for task, examples in answers.examples.items():
        left = [e for e in examples if (task, e.id) not in done]
        if left:
            blank = [replace(e, target="") for e in left]
            texts = method.predict(blank, train.of(task) if train is not None else [])
            answers.write(task, [(e.id, t, 0, False) for e, t in zip(left, texts, strict=True)])
        stop.check()


def generate_answers(generator: Generator, encoder: Encoder, answers: Answers, stop: StopFlag) -> GenerationSummary:
    """Generate every text that is not on disk yet; batches that are partly on disk are made again whole."""
    done = answers.recover()
    tasks = list(answers.examples)
    requests = []
    for route, (task, examples) in enumerate(answers.examples.items()):
        for example, (prompt, _) in zip(examples, encoder.prompts(examples), strict=True):
            requests.append(Request(id=example.id, route=route, prompt=prompt, limit=encoder.limit(task, prompt)))
    finished = {(tasks.index(t), i) for t, i in done}
    started = time.perf_counter()
    with tqdm(total=len(requests), initial=len(done), desc="generate", unit="row", disable=None) as bar:

        def keep(batch: Sequence[Generated]) -> None:
            for task in dict.fromkeys(tasks[g.route] for g in batch):
                mine = [g for g in batch if tasks[g.route] == task and (g.route, g.id) not in finished]
                texts = encoder.tokenizer.batch_decode([list(g.tokens) for g in mine], skip_special_tokens=True)
                answers.write(task, [(g.id, x, len(g.tokens), g.cut) for g, x in zip(mine, texts, strict=True)])
            stop.check()

        def ended(rows: int) -> None:
            bar.update(min(rows, len(requests) - bar.n))  # rows of a batch that is made again are counted twice
            stop.check()

        stats = generator.run(requests, keep, finished=finished, ended=ended)
    if stats.chosen is not None:
        answers.chosen = {task: {} for task, examples in answers.examples.items() if examples}
        for (own, _), route in stats.chosen.items():
            counts = answers.chosen[tasks[own]]
            counts[tasks[route]] = counts.get(tasks[route], 0) + 1
    return GenerationSummary(
        tokens=stats.tokens, seconds=time.perf_counter() - started, halved=stats.halved, unfolded=stats.unfolded
    )


def answered_together(parts: Sequence[GenerationSummary | None]) -> GenerationSummary | None:
    """Sums; None where no model was asked."""
    known = [p for p in parts if p is not None]
    if not known:
        return None
    tokens = [p.tokens for p in known if p.tokens is not None]
    return GenerationSummary(
        tokens=sum(tokens) if len(tokens) == len(known) else None,
        seconds=sum(p.seconds for p in known),
        halved=sum(p.halved for p in known),
        unfolded=tuple(t for p in known for t in p.unfolded),
    )
