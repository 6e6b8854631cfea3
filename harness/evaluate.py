"""Texts for every test row: generated in batches that are on disk as soon as they end, never made twice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from harness.data import Rows
from harness.encode import Encoder
from harness.generate import Generated, Generator, Request
from harness.interrupt import StopFlag
from harness.method import Method, Trait
from harness.prepare import Prepared
from harness.record import GenerationSummary, Prediction, text_hash
from harness.resolve import Resolved
from harness.store import RunDirectory, append_lines
from harness.task import Example


@dataclass(kw_only=True)
class Answers:
    """The predictions of a run while they are made.

    examples: by task. chosen: how many of each task's prompts the adapter gave to which task, where it chooses alone.
    """

    run: RunDirectory
    examples: Mapping[str, Sequence[Example]]
    warnings: list[str] = field(default_factory=list)
    chosen: dict[str, dict[str, int]] | None = None

    def __post_init__(self) -> None:
        self._by_key = {(t, e.id): e for t, rows in self.examples.items() for e in rows}

    def recover(self) -> set[tuple[str, str]]:
        """(task, id) of what an earlier process has finished; files are cleaned of half lines and stale texts."""
        done: set[tuple[str, str]] = set()
        for task, rows in self.examples.items():
            known = {e.id: e for e in rows}
            found, size = self.run.recover_predictions(task)
            path = self.run.prediction_file(task)
            if path.exists() and path.stat().st_size > size:
                self.warnings.append(f"{path.name}: a half-written last line was dropped; its batch is made again")
                os.truncate(path, size)
            good = [p for p in found if p.id in known and _matches(p, known[p.id])]
            if len(good) < len(found):
                self.warnings.append(f"{path.name}: {len(found) - len(good)} texts for other prompts are made again")
                path.unlink()
                append_lines(path, [p.model_dump_json() for p in good])
            done |= {(task, p.id) for p in good}
        return done

    def write(self, task: str, texts: Iterable[tuple[str, str, int | None, bool | None]]) -> None:
        """Append (id, text, tokens, cut) of one task, flushed to disk; None where a back end did not tell."""
        lines = []
        for key, text, tokens, cut in texts:
            example = self._by_key[task, key]
            prediction = Prediction(
                id=key,
                prompt_hash=text_hash(example.prompt),
                target_hash=text_hash(example.target),
                text=text,
                tokens=tokens,
                cut=cut,
            )
            lines.append(json.dumps(prediction.model_dump(), ensure_ascii=False))
        append_lines(self.run.prediction_file(task), lines)


def make_answers(
    resolved: Resolved, prepared: Prepared | None, train: Rows | None, answers: Answers, stop: StopFlag
) -> GenerationSummary | None:
    """Write every text that is missing: by the method itself, by a back end, or through the adapter.

    Returns: what it cost; None where no model was asked.
    """
    if Trait.ANSWERS in resolved.method.traits:
        answer_without_model(resolved.method, answers, train, stop)
        return None
    if prepared is None:
        from harness.lm_eval_backend import answer_by_backend

        return answer_by_backend(resolved, train, answers, stop)
    summary = generate_answers(generator(resolved, prepared), prepared.encoder, answers, stop)
    tokens = sum(p.tokens or 0 for t in answers.examples for p in answers.run.predictions(t))
    return summary.model_copy(update={"tokens": tokens})


def generator(resolved: Resolved, prepared: Prepared) -> Generator:
    """The text generator of a prepared run."""
    return Generator(
        prepared.loaded,
        prepared.adapter,
        prepared.tasks,
        folds=Trait.FOLDS in resolved.method.traits,
        batch_tokens=resolved.spec.eval.batch_tokens,
        reads=Trait.LABEL_FREE in resolved.method.traits,
    )


def answer_without_model(method: Method, answers: Answers, train: Rows | None, stop: StopFlag) -> None:
    """Trait ANSWERS: each task's texts from its training rows."""
    done = answers.recover()
    for task, examples in answers.examples.items():
        left = [e for e in examples if (task, e.id) not in done]
        if left:
            blank = [replace(e, target="") for e in left]
            texts = method.answer(task, blank, train.of(task) if train is not None else [])
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


def _matches(prediction: Prediction, example: Example) -> bool:
    same = prediction.prompt_hash == text_hash(example.prompt)
    return same and prediction.target_hash == text_hash(example.target)
