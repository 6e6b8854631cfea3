"""Write the sample's two suites: ``python -m tasks.sample.make_data [folder]``. Seeded: the same files every time."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.sample.generate.firefly_rows import KINDS
from tasks.sample.generate.promptcblue_rows import TASKS, Maker, Row

SEED = 20
COUNTS = {"train": 96, "dev": 8, "test": 24}  # rows of each task
HERE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A row with the task and the split that it went to."""

    task: str
    split: str
    row: Row


def rows(makers: dict[str, Maker]) -> Iterator[Placed]:
    """Every row of every task; contents and prompts are unique over all splits of a task."""
    for task, make in makers.items():
        rng = random.Random(f"{SEED}:{task}")
        seen: set[str] = set()
        for split, count in COUNTS.items():
            for i in range(count):
                row = make(rng, i)
                while row.content in seen or row.prompt in seen:
                    row = make(rng, i)
                seen |= {row.content, row.prompt}
                yield Placed(task=task, split=split, row=row)


def _write(path: Path, lines: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write(folder: Path) -> None:
    """Write ``promptcblue/{train,dev,test}.json`` and ``firefly/{train,dev,test}.jsonl`` under the folder."""
    clue = list(rows({name: maker for name, (_, maker) in TASKS.items()}))
    fire = list(rows(KINDS))
    for split in COUNTS:
        mine = [placed for placed in clue if placed.split == split]
        random.Random(f"{SEED}:{split}").shuffle(mine)
        _write(
            folder / "promptcblue" / f"{split}.json",
            [
                {
                    "input": placed.row.prompt,
                    "target": placed.row.target,
                    "answer_choices": placed.row.choices,
                    "task_type": TASKS[placed.task][0],
                    "task_dataset": placed.task,
                    "sample_id": f"{split}-{number}",
                }
                for number, placed in enumerate(mine)
            ],
        )
        ours = [placed for placed in fire if placed.split == split]
        random.Random(f"{SEED}:{split}").shuffle(ours)
        _write(
            folder / "firefly" / f"{split}.jsonl",
            [{"kind": placed.task, "input": placed.row.prompt, "target": placed.row.target} for placed in ours],
        )


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
