"""A suite's leaderboard from the runs of a folder, and its files in ./leaderboards."""

from __future__ import annotations

import json
from pathlib import Path

from harness.errors import HarnessError, StoreError
from harness.leaderboard import Leaderboard, build
from harness.leaderboard_export import to_csv, to_json
from harness.leaderboard_text import render_markdown
from harness.registry import suite_class
from harness.store import find_runs, write_atomic

FOLDER = Path("leaderboards")
REFERENCE = "lora_single"  # transfer is what a method gains over a LoRA per task
_SUFFIX = {"markdown": ".md", "csv": ".csv", "json": ".json"}


def make_board(suite: str, out: Path, protocol: str | None) -> Leaderboard:
    """Raises: StoreError where the folder has no runs of the suite."""
    tasks = suite_class(suite)().tasks.values()
    first = next(iter(next(iter(tasks)).protocols))
    board = build(find_runs(out), suite, protocol or first, reference=REFERENCE)
    if not board.tables and not board.unfinished:
        raise StoreError(f"no runs of suite {suite!r} in {out}. Make one: harness run --suite {suite} --method …")
    return board


def rendered(board: Leaderboard, form: str) -> str:
    """The board as markdown, csv or json text, ending in one newline."""
    if form == "json":
        text = json.dumps(to_json(board), ensure_ascii=False, indent=1)
    else:
        text = render_markdown(board) if form == "markdown" else to_csv(board)
    return text.rstrip("\n") + "\n"


def write_board(board: Leaderboard) -> list[Path]:
    """Write leaderboards/<suite>.md, .csv and .json; returns their paths."""
    paths = []
    for form, suffix in _SUFFIX.items():
        path = FOLDER / f"{board.suite}{suffix}"
        write_atomic(path, rendered(board, form).encode())
        paths.append(path)
    return paths


def check_board(board: Leaderboard) -> None:
    """Raises: HarnessError where the committed Markdown is not what the runs say."""
    path = FOLDER / f"{board.suite}.md"
    if not path.exists() or path.read_text(encoding="utf-8") != rendered(board, "markdown"):
        raise HarnessError(f"{path} is not what the runs say. Make it again: harness leaderboard {board.suite} --write")
