"""Task files of natural-instructions, made by the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def instances(number: int, n: int) -> list[dict[str, Any]]:
    return [{"id": f"task{number}-{i}", "input": f"thing {i}", "output": [f"answer {i}", str(i)]} for i in range(n)]


def task_content(number: int, n: int = 30, **changes: Any) -> dict[str, Any]:
    content = {
        "Categories": ["Title Generation"],
        "Output_language": ["English"],
        "Definition": ["Name the thing."],
        "Positive Examples": [{"input": "thing 1", "output": "answer 1", "explanation": "It is."}],
        "Negative Examples": [],
        "Instances": instances(number, n),
    } | changes
    return {key: value for key, value in content.items() if value is not None}


def write_tasks(
    folder: Path, tasks: Mapping[str, Mapping[str, Any]], *, train: Sequence[str] = (), test: Sequence[str] = ()
) -> Path:
    """A copy of natural-instructions in miniature, with lists if any is given."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    for name, content in tasks.items():
        (folder / "tasks" / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    if train or test:
        lists = folder / "splits" / "default"
        lists.mkdir(parents=True, exist_ok=True)
        for part, names in (("train", train), ("test", test)):
            (lists / f"{part}_tasks.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return folder
