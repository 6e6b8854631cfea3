"""How long a leaderboard of 500 finished runs takes to be opened, compared and rendered, imports included.

    python benchmarks/leaderboard.py              100 methods with five seeds; the limit is 10 s on two cores
    python benchmarks/leaderboard.py --runs 50    a smaller one

The runs are made first, in a temporary folder, and count for nothing: records, scores and draws of 16 tasks with 100
examples each. Seconds are those of the processor, which other programs do not change as much as those of the clock.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

STARTED = time.process_time()
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import numpy as np  # noqa: E402  (the clock must see the imports)
from toy_runs import ToyRuns  # noqa: E402

from harness.leaderboard.build import build_leaderboard  # noqa: E402
from harness.leaderboard.export import to_csv, to_json  # noqa: E402
from harness.leaderboard.markdown import render_markdown  # noqa: E402
from harness.store.run_directory import find_runs  # noqa: E402

TASKS, EXAMPLES, SEEDS = 16, 100, 5
LIMIT = 10.0


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=500)
    options = arguments.parse_args()
    imports = time.process_time() - STARTED
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        make_runs(runs, options.runs)
        spent = imports + timed("opened and compared", imports, runs)
    print(f"{'in all':>20}  {spent:6.2f} s with imports, limit {LIMIT:.0f} s")
    return int(spent > LIMIT)


def make_runs(folder: Path, n: int) -> None:
    """``n`` finished runs; methods differ in how many examples they predict correctly."""
    toy_run, random = ToyRuns(folder), np.random.default_rng(0)
    for i in range(n):
        share = 0.4 + 0.3 * (i // SEEDS) / max(1, n // SEEDS)
        right = {f"A-{t}": [bool(x) for x in random.random(EXAMPLES) < share] for t in range(TASKS)}
        toy_run(f"method{i // SEEDS}", right, seed=i % SEEDS)


def timed(label: str, imports: float, folder: Path) -> float:
    """Seconds to build and to render the leaderboard of a folder of runs."""
    print(f"{'imports':>20}  {imports:6.2f} s")
    began = time.process_time()
    board = build_leaderboard(find_runs(folder), "toys", "official")
    built = time.process_time()
    print(f"{label:>20}  {built - began:6.2f} s")
    size = len(render_markdown(board)) + len(to_csv(board)) + len(str(to_json(board)))
    done = time.process_time()
    print(f"{'rendered':>20}  {done - built:6.2f} s ({size:,} characters)")
    return done - began


if __name__ == "__main__":
    raise SystemExit(main())
