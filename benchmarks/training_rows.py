"""Rows of the training benchmark: PromptCBLUE's own, or random tokens of their lengths."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from harness.data.encoding import Encoded, Encoder, generation_limits
from harness.models.loading import LoadedModel
from harness.registry import suite_class

TRAINER_BATCH = 8  # rows of a forward pass of transformers' Trainer by default
_GROUP = 50  # batches that its sampler sorts by length together
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Characters of prompts and targets of PromptCBLUE's tasks at these quantiles.
_LENGTHS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "CHIP-CDEE": ((68, 92, 115, 161, 258), (42, 59, 118, 207, 492)),
    "KUAKE-IR": ((89, 124, 160, 206, 341), (2, 2, 3, 3, 3)),
    "CHIP-MDCFNPC": ((231, 334, 466, 665, 1187), (68, 121, 177, 217, 241)),
    "IMCS-V2-MRG": ((444, 605, 777, 1018, 1480), (69, 85, 104, 138, 190)),
    "CMeEE-V2": ((48, 67, 82, 105, 155), (12, 53, 74, 92, 131)),
    "IMCS-V2-DAC": ((83, 135, 158, 173, 193), (5, 7, 7, 9, 12)),
    "CHIP-CDN": ((78, 89, 101, 118, 144), (3, 6, 10, 12, 21)),
    "KUAKE-QTR": ((70, 80, 87, 94, 106), (4, 4, 4, 11, 13)),
    "KUAKE-QIC": ((50, 68, 75, 81, 92), (4, 4, 4, 4, 5)),
    "CHIP-STS": ((46, 54, 60, 68, 81), (2, 2, 2, 2, 2)),
    "KUAKE-QQR": ((66, 72, 77, 81, 88), (4, 4, 7, 10, 10)),
    "CHIP-CTC": ((65, 118, 173, 219, 258), (2, 2, 4, 5, 6)),
    "CMeIE": ((60, 84, 110, 150, 231), (10, 34, 76, 118, 226)),
    "MedDG": ((52, 104, 179, 322, 805), (3, 8, 13, 22, 51)),
    "IMCS-V2-NER": ((28, 36, 44, 56, 86), (19, 29, 35, 43, 57)),
}

Pool = Callable[[int], list[Encoded]]


def synthetic_rows(loaded: LoadedModel, options: argparse.Namespace) -> tuple[list[str], Pool]:
    """Random tokens, one for a character of PromptCBLUE; a prompt too long loses what does not fit."""
    vocabulary = int(loaded.model.config.vocab_size)
    tasks = list(_LENGTHS)

    def make(number: int) -> list[Encoded]:
        draw = np.random.default_rng(number)

        def length(quantiles: Sequence[int]) -> int:
            return max(1, round(float(np.interp(draw.uniform(0.02, 0.98), _QUANTILES, quantiles))))

        def tokens(n: int) -> tuple[int, ...]:
            return tuple(int(t) for t in draw.integers(1, vocabulary, n))

        rows = []
        for task in draw.choice(tasks, options.batch * options.steps):
            prompt, target = (length(q) for q in _LENGTHS[task])
            target = min(target + 1, options.max_length // 2)
            prompt = min(prompt, options.max_length - target)
            rows.append(Encoded(task=str(task), prompt=tokens(prompt), target=tokens(target), truncated=False))
        return rows

    return tasks, make


def real_rows(loaded: LoadedModel, options: argparse.Namespace) -> tuple[list[str], Pool]:
    """PromptCBLUE's own rows in the model's tokens."""
    from harness.data.splits import group
    from harness.seeding import stable_seed

    suite = suite_class("promptcblue")()
    rows = group(suite.read(options.data, "train"), "train", list(suite.tasks))
    tasks = [t for t, n in rows.counts.items() if n]
    everything = np.concatenate([rows.by_task[t] for t in tasks])
    order = np.random.default_rng(stable_seed("bench")).permutation(everything)
    encoder = Encoder(
        tokenizer=loaded.tokenizer,
        style="plain",
        eos=int(loaded.tokenizer.eos_token_id),
        max_length=options.max_length,
        limits=generation_limits(loaded.tokenizer, rows, tasks, options.max_length // 2),
    )
    n = options.batch * options.steps
    return tasks, lambda number: encoder.encode(rows.at(np.take(order, np.arange(n) + number * n, mode="wrap")))


def grouped_rows(pool: Pool, number: int, n: int) -> list[Encoded]:
    """n rows as length grouping deals them: whole batches, spread evenly over a sorted group of 50."""
    group: list[Encoded] = []
    while len(group) < _GROUP * TRAINER_BATCH:
        group += pool(1000 * (number + 1) + len(group))
    group = sorted(group[: _GROUP * TRAINER_BATCH], key=len)
    n_batches = n // TRAINER_BATCH
    first = np.random.default_rng(number).integers(_GROUP)
    chosen = [(first + k * _GROUP // n_batches) % _GROUP for k in range(n_batches)]
    return [row for b in chosen for row in group[b * TRAINER_BATCH : (b + 1) * TRAINER_BATCH]]
