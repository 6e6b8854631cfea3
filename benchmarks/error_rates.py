"""Simulated error rates of the statistics: boards of equally good methods, tested by the functions of the product.

    python benchmarks/error_rates.py [--repeats 400] [--markdown]

Every repeat draws a test set, methods with equal true skill, seeds with effects of their own, and predictions; then the
best row is tested against all others as a leaderboard does it. Any significant difference is an error. Coverage is the
share of 95 % intervals of the first difference that contain 0.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.scoring.significance import all_pairs, tukey
from harness.scoring.statistics import Resampled, Side, difference, example_counts, resample, shared_variance
from harness.task import Floats
from tasks.common.metrics import label_statistics

DRAWS = 400
ALPHA = 0.05
ENOUGH_SEEDS = 5


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One setting. classes: of a label task with Zipf frequencies, scored by macro-F1; 2: scored by accuracy.

    seed_sd: of the seeds' effects, on the logit of being correct (0.3 is about 4 points).
    """

    n_seeds: int
    n_examples: int
    classes: int
    n_rows: int
    seed_sd: float = 0.3


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of repeats. family: boards with any false significance. coverage: of the interval of one difference."""

    family: float
    coverage: float
    half_width: float


def simulate(cell: Cell, repeats: int, seed: int = 0) -> Rates:
    """The rates of one cell."""
    rng = np.random.default_rng([seed, cell.n_seeds, cell.n_examples, cell.classes, cell.n_rows])
    counts = example_counts("simulated", cell.n_examples, DRAWS)
    wrong = covered = 0
    halves = []
    for _ in range(repeats):
        rows = _board(cell, rng, counts)
        means = [float(np.mean([run.value for run in row])) for row in rows]
        best = int(np.argmax(means))
        values = [[run.value for run in row] for row in rows]
        shared = shared_variance(values) if cell.n_seeds < ENOUGH_SEEDS else None
        sides = [Side(runs=row) for row in rows]
        found = [difference(sides[best], side, shared) for i, side in enumerate(sides) if i != best]
        wrong += min((all_pairs if shared is None else tukey)(found)) < ALPHA
        first = difference(sides[0], sides[1], shared)
        covered += first.low <= 0 <= first.high
        halves.append((first.high - first.low) / 2)
    return Rates(family=wrong / repeats, coverage=covered / repeats, half_width=float(np.median(halves)))


def _board(cell: Cell, rng: np.random.Generator, counts: Floats) -> list[list[Resampled]]:
    """The seeds of every row on one test set: examples differ in difficulty, methods in which ones they find hard."""
    n, k = cell.n_examples, cell.classes
    labels = _zipf(k)
    golds = rng.choice(k, size=n, p=labels)
    hard = rng.normal(0, 1.5, n)
    rows = []
    for _ in range(cell.n_rows):
        own = hard + rng.normal(0, 1.0, n)
        runs = []
        for _ in range(cell.n_seeds):
            right = rng.random(n) < 1 / (1 + np.exp(-(own + rng.normal(0, cell.seed_sd))))
            runs.append(_score(golds, np.where(right, golds, _others(golds, labels, rng)), right, k, counts))
        rows.append(runs)
    return rows


def _zipf(k: int) -> Floats:
    weights = 1 / np.arange(1, k + 1)
    shares: Floats = weights / weights.sum()
    return shares


def _others(golds: np.ndarray, labels: Floats, rng: np.random.Generator) -> np.ndarray:
    """Wrong labels, by the frequencies of the classes."""
    drawn = rng.choice(len(labels), size=len(golds), p=labels)
    return np.where(drawn == golds, (golds + 1) % len(labels), drawn)


def _score(golds: np.ndarray, answers: np.ndarray, right: np.ndarray, k: int, counts: Floats) -> Resampled:
    if k == 2:
        x = right.astype(float)
        return Resampled(value=float(x.mean()), draws=counts @ x / len(x))
    texts = [str(g) for g in golds], [str(a) for a in answers]
    return resample(label_statistics(*texts), "macro_f1", counts)


def cells() -> Iterator[Cell]:
    """The settings of the table in the documentation."""
    for n_seeds in (2, 3, 5):
        for n_examples in (24, 100, 200):
            for classes in (2, 11, 44):
                for n_rows in (2, 9, 28):
                    if classes == 2 or n_rows < 28:
                        yield Cell(n_seeds=n_seeds, n_examples=n_examples, classes=classes, n_rows=n_rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line for each cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=400)
    options = parser.parse_args(arguments)
    print("| seeds | examples | metric | rows | false significance per family | coverage | half width |")
    print("| --: | --: | :-- | --: | --: | --: | --: |")
    for cell in cells():
        found = simulate(cell, options.repeats)
        metric = "accuracy" if cell.classes == 2 else f"macro-F1, {cell.classes} classes"
        error = 100 * math.sqrt(0.05 * 0.95 / options.repeats)
        print(
            f"| {cell.n_seeds} | {cell.n_examples} | {metric} | {cell.n_rows} | {100 * found.family:.1f} % | "
            f"{100 * found.coverage:.1f} % | {100 * found.half_width:.1f} |"
        )
        sys.stdout.flush()
    print(f"\n{options.repeats} repeats a line: a rate of 5 % has a standard error of {error:.1f} points.")


if __name__ == "__main__":
    main()
