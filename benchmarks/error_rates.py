"""Simulated error rates of the statistics: boards of equally good methods, tested by the functions of the product.

    python benchmarks/error_rates.py OUT.jsonl [--repeats 400]   # one line a cell; cells that are there are kept
    python benchmarks/error_rates.py OUT.jsonl --table           # the cells of the file as Markdown

Every repeat draws a test set, methods with equal true skill, seeds with effects of their own, and predictions; then the
best row is tested against all others as a leaderboard does it. Any significant difference is an error. Coverage is the
share of 95 % intervals of the first difference that contain 0.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from harness.scoring.significance import all_pairs, tukey
from harness.scoring.statistics import Resampled, Side, difference, resample, shared_variance, unit_counts
from harness.task import Floats
from tasks.common.metrics import label_statistics

DRAWS = 400
ALPHA = 0.05
ENOUGH_SEEDS = 5


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One setting.

    classes: of a label task with Zipf frequencies, scored by macro-F1; 2: scored by accuracy.
    n_rows: the methods of a board. seeds_agree: whether the seeds of a method answer most examples alike, so that the
        choice of examples matters more than the seeds.
    seed_sd: of the seeds' effects, on the logit of being correct (0.3 is about 4 points).
    """

    n_seeds: int
    n_examples: int
    classes: int
    n_rows: int
    seeds_agree: bool
    seed_sd: float = 0.3

    @property
    def difficulty(self) -> float:
        """A factor of the logits of single examples.

        With ``same_error``, two seeds answer 89, 77 and 75 % of the examples alike with 2, 11 and 44 classes if they
        agree, and 68, 41 and 37 % if they do not.
        """
        return 4.0 if self.seeds_agree else 1.0

    @property
    def same_error(self) -> float:
        """The probability that a seed's wrong answer is the one that is typical of its method."""
        return 0.8 if self.seeds_agree else 0.0


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of repeats.

    family: boards with any false significance. coverage: of the interval of one difference, whose median half width is
    half_width. The same with draws only, as in records that were scored without deviations: draws_family,
    draws_coverage; None for boards, because draws take long.
    """

    family: float
    coverage: float
    half_width: float
    draws_family: float | None
    draws_coverage: float | None


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """One repeat. wrong: whether any difference is significant; low, high: the interval of the first difference."""

    wrong: bool
    low: float
    high: float

    @property
    def covered(self) -> bool:
        """Whether the interval contains the true difference."""
        return self.low <= 0 <= self.high


def simulate(cell: Cell, repeats: int, seed: int = 0) -> Rates:
    """The rates of one cell."""
    setting = (cell.n_seeds, cell.n_examples, cell.classes, cell.n_rows, int(cell.seeds_agree))
    rng = np.random.default_rng([seed, *setting])
    pair = cell.n_rows == 2
    counts = unit_counts("simulated", cell.n_examples, DRAWS if pair else 10)
    full: list[Verdicts] = []
    draws: list[Verdicts] = []
    for _ in range(repeats):
        rows = _board(cell, rng, counts)
        full.append(_verdicts(cell, rows))
        if pair:
            draws.append(_verdicts(cell, [[replace(run, deviations=None) for run in row] for row in rows]))
    return Rates(
        family=float(np.mean([v.wrong for v in full])),
        coverage=float(np.mean([v.covered for v in full])),
        half_width=float(np.median([(v.high - v.low) / 2 for v in full])),
        draws_family=float(np.mean([v.wrong for v in draws])) if pair else None,
        draws_coverage=float(np.mean([v.covered for v in draws])) if pair else None,
    )


def _verdicts(cell: Cell, rows: Sequence[Sequence[Resampled]]) -> Verdicts:
    values = [[run.value for run in row] for row in rows]
    best = int(np.argmax([np.mean(v) for v in values]))
    shared = shared_variance(values) if cell.n_seeds < ENOUGH_SEEDS else None
    sides = [Side(runs=row) for row in rows]
    found = [difference(sides[best], side, shared) for i, side in enumerate(sides) if i != best]
    first = difference(sides[0], sides[1], shared)
    candidates = [f for f in found if f.p < ALPHA]  # Corrected p values are larger, and the studentised range is slow.
    p = (all_pairs if shared is None else tukey)(candidates, groups=len(rows))
    return Verdicts(wrong=min(p, default=1.0) < ALPHA, low=first.low, high=first.high)


def _board(cell: Cell, rng: np.random.Generator, counts: Floats) -> list[list[Resampled]]:
    """The seeds of every row on one test set: examples differ in difficulty, methods in which ones they find hard."""
    n, k = cell.n_examples, cell.classes
    labels = _zipf(k)
    golds = rng.choice(k, size=n, p=labels)
    hard = rng.normal(0, 1.5, n)
    rows = []
    for _ in range(cell.n_rows):
        own = cell.difficulty * (hard + rng.normal(0, 1.0, n))
        typical = _others(golds, labels, rng)
        runs = []
        for _ in range(cell.n_seeds):
            right = rng.random(n) < 1 / (1 + np.exp(-(own + rng.normal(0, cell.seed_sd))))
            wrong = np.where(rng.random(n) < cell.same_error, typical, _others(golds, labels, rng))
            runs.append(_score(golds, np.where(right, golds, wrong), k, counts))
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


def _score(golds: np.ndarray, answers: np.ndarray, k: int, counts: Floats) -> Resampled:
    texts = [str(g) for g in golds], [str(a) for a in answers]
    return resample(label_statistics(*texts), "accuracy" if k == 2 else "macro_f1", counts)


def cells() -> Iterator[Cell]:
    """The settings of the table in the documentation: pairs of methods, boards of 9 rows and of 28."""
    for agree in (True, False):
        sizes = (24, 100, 200) if agree else (24, 200)
        for n_seeds, n_examples, classes in product((2, 3, 5), sizes, (2, 11, 44)):
            yield Cell(n_seeds=n_seeds, n_examples=n_examples, classes=classes, n_rows=2, seeds_agree=agree)
        sizes = (24, 100) if agree else (100,)
        for n_seeds, n_examples, classes in product((2, 3, 5), sizes, (2, 44)):
            yield Cell(n_seeds=n_seeds, n_examples=n_examples, classes=classes, n_rows=9, seeds_agree=agree)
        for n_examples, classes in product(sizes if agree else (), (2, 44)):
            yield Cell(n_seeds=2, n_examples=n_examples, classes=classes, n_rows=28, seeds_agree=agree)


def table(lines: Sequence[str]) -> Iterator[str]:
    """The lines of a result file as a Markdown table, and how precise they are."""
    yield "| seeds | agree | examples | metric | rows | false | coverage | half width | draws only: false | coverage |"
    yield "| --: | :-- | --: | :-- | --: | --: | --: | --: | --: | --: |"
    for line in lines:
        found = json.loads(line)
        metric = "accuracy" if found["classes"] == 2 else f"macro-F1, {found['classes']} classes"
        shares = (found[name] for name in ("family", "coverage", "half_width", "draws_family", "draws_coverage"))
        figures = ("–" if share is None else f"{100 * share:.1f}" for share in shares)
        yield (
            f"| {found['n_seeds']} | {'yes' if found['seeds_agree'] else 'no'} | {found['n_examples']} | {metric} "
            f"| {found['n_rows']} | {' | '.join(figures)} |"
        )
    repeats = min(json.loads(line)["repeats"] for line in lines)
    error = 100 * math.sqrt(ALPHA * (1 - ALPHA) / repeats)
    yield f"\nIn percent; at least {repeats} repeats a line: a share of 5 % has a standard error of {error:.1f} points."


def main(arguments: Sequence[str] | None = None) -> None:
    """Append one line for each cell that the file lacks, or print the file as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(arguments)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    if options.table:
        print("\n".join(table(lines)))
        return
    done = [{key: json.loads(line)[key] for key in Cell.__dataclass_fields__} for line in lines]
    for cell in cells():
        if asdict(cell) not in done:
            found = {**asdict(cell), "repeats": options.repeats, **asdict(simulate(cell, options.repeats))}
            with options.out.open("a") as out:
                out.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
