"""Write the data of the embedded sample: ``python -m tasks.sample.generate.data [folder]``.

The random numbers are seeded, so the files are the same every time.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.sample.generate.firefly_examples import KINDS
from tasks.sample.generate.promptcblue_examples import TASKS, Draft, Maker
from tasks.sample.generate.superglue_items import lines as superglue_lines

SEED = 20
COUNTS = {"train": 96, "dev": 8, "test": 24}  # examples of each task in each split
HERE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """An example with its task and its split."""

    task: str
    split: str
    draft: Draft


def assign(makers: dict[str, Maker]) -> Iterator[Assigned]:
    """The examples of all tasks and splits; contents and prompts are unique within a task."""
    for task, make in makers.items():
        rng = random.Random(f"{SEED}:{task}")
        used: set[str] = set()
        for split, count in COUNTS.items():
            for i in range(count):
                draft = make(rng, i)
                while draft.content in used or draft.prompt in used:
                    draft = make(rng, i)
                used |= {draft.content, draft.prompt}
                yield Assigned(task=task, split=split, draft=draft)


def _write(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write(folder: Path) -> None:
    """Write ``promptcblue/{train,dev,test}.json``, ``firefly/{train,dev,test}.jsonl`` and
    ``superglue/TASK/{train,val}.jsonl`` under the folder.
    """
    for (task, split), of_split in superglue_lines(SEED).items():
        _write(folder / "superglue" / task / f"{split}.jsonl", of_split)
    promptcblue = list(assign({name: maker for name, (_, maker) in TASKS.items()}))
    firefly = list(assign(KINDS))
    for split in COUNTS:
        examples = [example for example in promptcblue if example.split == split]
        random.Random(f"{SEED}:{split}").shuffle(examples)
        _write(
            folder / "promptcblue" / f"{split}.json",
            [
                {
                    "input": example.draft.prompt,
                    "target": example.draft.target,
                    "answer_choices": example.draft.choices,
                    "task_type": TASKS[example.task][0],
                    "task_dataset": example.task,
                    "sample_id": f"{split}-{number}",
                }
                for number, example in enumerate(examples)
            ],
        )
        examples = [example for example in firefly if example.split == split]
        random.Random(f"{SEED}:{split}").shuffle(examples)
        _write(
            folder / "firefly" / f"{split}.jsonl",
            [
                {"kind": example.task, "input": example.draft.prompt, "target": example.draft.target}
                for example in examples
            ],
        )


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
