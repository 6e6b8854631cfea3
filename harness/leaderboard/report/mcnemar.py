"""p of McNemar's exact test for every pair of runs of a block of examples, by the two counts that it depends on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from harness.leaderboard.report.examples import TaskBlock
from harness.scoring import statistics as stats


def mcnemar_values(blocks: Iterable[TaskBlock]) -> dict[str, float]:
    """{"1,3": p}: the smaller count of discordant examples first; of tasks whose answers are one label."""
    counts: set[tuple[int, int]] = set()
    for block in blocks:
        if block.content["one_label"]:
            for correct in block.content["correct"]:
                counts |= _counts(block.content["predictions"], correct)
    found = {}
    for low, high in sorted(counts):
        place = np.arange(low + high)
        found[f"{low},{high}"] = stats.mcnemar(place < low, place >= low).p
    return found


def _counts(predictions: list[list[int]], correct: list[str]) -> set[tuple[int, int]]:
    """The discordant counts of all pairs of runs under one protocol; a run without a prediction has no pairs."""
    given = np.asarray(predictions)
    complete = (given >= 0).all(axis=0) if given.size else np.zeros(0, bool)
    right: Any = np.array(
        [[of_example[t] == "1" for t in line] for of_example, line in zip(correct, given[:, complete], strict=True)],
        dtype=np.int64,
    ).reshape(len(given), -1)
    only = right.T @ (1 - right)  # (runs, runs): how many examples the first has right and the second has not
    return {(int(min(a, b)), int(max(a, b))) for a, b in zip(only.ravel(), only.T.ravel(), strict=True)}
