"""A leaderboard of the runs in a folder and the published records, and its files next to its TOML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.config.spec import LOCAL, RunSpec
from harness.config.suites import OpenSuite, is_suite, open_recorded, open_suite, same_definition
from harness.errors import HarnessError, StoreError, unknown
from harness.leaderboard.build import build_leaderboard
from harness.leaderboard.export import to_csv, to_json
from harness.leaderboard.markdown import render_markdown
from harness.leaderboard.tables import Leaderboard
from harness.registry import SUITES, method_class, plugins
from harness.store.files import write_atomic
from harness.store.run_directory import RunDirectory, find_runs
from harness.sweep.spec import BoardSpec, read_board
from harness.task import Task

FOLDER = Path("leaderboards")
RECORDS = "records"  # The folder of published runs, below FOLDER.
_SUFFIX = {"markdown": ".md", "csv": ".csv", "json": ".json"}


@dataclass(frozen=True, kw_only=True)
class Board:
    """A leaderboard and the place of its files: ``folder/name.md`` and so on.

    own: it contains only the user's runs, so the pictures in the folder do not show its content.
    """

    name: str
    folder: Path
    content: Leaderboard
    own: bool = False


def make_board(name: str, out: Path, protocol: str | None = None, *, own: bool = False) -> Board:
    """The leaderboard of a suite (all its runs), or of ./leaderboards/<name>.toml (those on its model and data).

    Args:
        name: of a suite or leaderboard, or a suite's file.
        own: without the published records, if there are any runs below ``out``.

    Raises: UsageError for an unknown name; StoreError if there are no runs.
    """
    path = FOLDER / f"{name}.toml"
    if path.exists():
        return replace(board_of_file(path, read_board(path), out, protocol, own=own), own=own)
    runs = runs_of(out, FOLDER, own=own)
    opened = open_suite(name) if is_suite(name) else _recorded(name, runs)
    if opened is None:
        raise unknown("suite or leaderboard", name, [*plugins(SUITES), *(p.stem for p in FOLDER.glob("*.toml"))])
    return replace(_board(opened.name, FOLDER, opened, None, runs, protocol), own=own)


def board_of_file(path: Path, spec: BoardSpec, out: Path, protocol: str | None = None, *, own: bool = False) -> Board:
    """The leaderboard of a TOML file; a file with the name of its suite has all runs of the suite."""
    runs = runs_of(out, path.parent, own=own)
    opened = open_suite(spec.suite, spec.suite_options)
    if path.stem != opened.name:
        runs = [r for r in runs if (found := r.spec()) is not None and _belongs(found, spec, opened)]
    return _board(path.stem, path.parent, opened, spec, runs, protocol)


def _recorded(name: str, runs: Sequence[RunDirectory]) -> OpenSuite | None:
    """The suite with this name of one of the runs; None if they have no such suite."""
    specs = (run.spec() for run in runs)
    return next((open_recorded(spec.suite) for spec in specs if spec is not None and spec.suite.name == name), None)


def runs_of(out: Path, folder: Path, *, own: bool = False) -> list[RunDirectory]:
    """Runs and published records, each once. own: without the records, if there are any runs."""
    by_name: dict[str, RunDirectory] = {}
    runs = find_runs(out)
    for run in runs if own and runs else [*runs, *find_runs(folder / RECORDS)]:
        by_name.setdefault(run.name, run)
    return list(by_name.values())


def rendered(board: Board, form: str) -> str:
    """The board as markdown, csv or json text, ending in one newline."""
    if form == "json":
        text = json.dumps(to_json(board.content), ensure_ascii=False, indent=1)
    else:
        text = (
            render_markdown(board.content, board.name, _drawn(board)) if form == "markdown" else to_csv(board.content)
        )
    return text.rstrip("\n") + "\n"


def write_board(board: Board) -> list[Path]:
    """Write the pictures into a folder <name>, then <name>.md, .csv and .json; returns their paths."""
    from harness.leaderboard.plots.tables import plots

    drawn = plots(board.content)
    pictures = board.folder / board.name
    for old in set(pictures.glob("*.svg")) - {pictures / name for name in drawn}:
        old.unlink()
    for name, picture in drawn.items():
        write_atomic(pictures / name, picture)
    paths = [pictures] if drawn else []
    for form, suffix in _SUFFIX.items():
        path = board.folder / f"{board.name}{suffix}"
        write_atomic(path, rendered(board, form).encode())
        paths.append(path)
    return paths


def check_board(board: Board) -> None:
    """Compare the Markdown file with the runs. Raises: HarnessError if they differ."""
    path = board.folder / f"{board.name}.md"
    if not path.exists() or path.read_text(encoding="utf-8") != rendered(board, "markdown"):
        raise HarnessError(f"{path} differs from the runs. To write it again: harness leaderboard {board.name} --write")


def _board(
    name: str,
    folder: Path,
    opened: OpenSuite,
    spec: BoardSpec | None,
    runs: Sequence[RunDirectory],
    protocol: str | None,
) -> Board:
    tasks = list(_tasks(opened, runs).values())
    if not tasks:
        raise _no_runs(name, opened)
    first = next(iter(tasks[0].protocols))
    reference = None if spec is None else spec.reference
    if reference is not None:
        method_class(reference)  # Raises a UsageError for an unknown name.
    limit = opened.suite.parameter_limit
    content = build_leaderboard(
        runs, opened.name, protocol or first, reference=reference, file=spec, parameter_limit=limit
    )
    if not (content.tables or content.elsewhere or content.unfinished):
        raise _no_runs(name, opened)
    return Board(name=name, folder=folder, content=content)


def _tasks(opened: OpenSuite, runs: Sequence[RunDirectory]) -> Mapping[str, Task]:
    """The suite's tasks; those of one of its runs, for a suite that finds its tasks in the data."""
    recorded = None if opened.suite.tasks else _recorded(opened.name, runs)
    return opened.suite.tasks if recorded is None else recorded.suite.tasks


def _no_runs(name: str, opened: OpenSuite) -> StoreError:
    given = opened.file or opened.name
    return StoreError(f"no runs for {name!r}. Start one: harness run --suite {given} --method METHOD")


def _drawn(board: Board) -> list[str]:
    """The pictures in the folder. A check does not draw them again, because published records have no logs."""
    if board.own:
        return []
    names = {p.stem for p in (board.folder / board.name).glob("*.svg")}
    return sorted(n for n in names if f"{n}-dark" in names)


def _belongs(run: RunSpec, board: BoardSpec, opened: OpenSuite) -> bool:
    sample = board.data is None and opened.data is None
    model = run.model is None or run.backend != LOCAL or run.model.label in _names(board.model)
    return model and run.data.sample == sample and same_definition(run.suite, opened)


def _names(model: str | None) -> tuple[str, ...]:
    return () if model is None else (model, Path(model).name)
