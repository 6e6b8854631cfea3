"""The pages that users read: their commands run, their figures are on record, their links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from pages import ROOT, Block, blocks, harness_commands, pages

from harness.cli.main import cli

PAGES = [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in pages()]
# The commands of these pages take long and are tested one by one elsewhere.
LONG = {
    "compiled_blocks",
    "gpus_and_machines",
    "lm_eval_groups",
    "merging_and_transfer",
    "one_lora_for_all_tasks",
    "predict",
    "reading_a_leaderboard",
    "real_data_and_models",
    "scale",
    "super_natural_instructions",
    "task_affinity",
}
RUN = [
    pytest.param(path, id=path.relative_to(ROOT).as_posix(), marks=[pytest.mark.slow] if path.stem in LONG else [])
    for path in pages()
]


@pytest.fixture(scope="module")
def shell_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PATH on which ``harness`` starts at once."""
    from forked_harness import write_command

    folder = tmp_path_factory.mktemp("bin")
    command = [sys.executable, str(ROOT / "tests" / "support" / "forked_harness.py"), str(folder / "socket")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        write_command(folder, folder / "socket")
        yield f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        server.terminate()


def _script(page: list[Block]) -> str:
    """One script, so that a block may use what an earlier one has made; it stops at the first command that fails."""
    parts = [f"echo '#### block at line {block.line}' >&2\n{block.code}" for block in page if block.reason is None]
    return "\n".join(["set -euo pipefail", *parts])


@pytest.mark.long
@pytest.mark.parametrize("path", RUN)
def test_the_commands_of_a_page_run_in_order(path: Path, shell_path: str, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    page = blocks(text)
    if all(block.reason is not None for block in page):
        return
    if "leaderboards/" in _script(page):
        shutil.copytree(ROOT / "leaderboards", tmp_path / "leaderboards")
    environment = {**os.environ, "PATH": shell_path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", _script(page)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{path.name}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("path", PAGES)
def test_a_block_that_is_not_run_says_why(path: Path) -> None:
    for block in blocks(path.read_text(encoding="utf-8")):
        assert block.reason is None or len(block.reason) > 10, f"{path.name}, line {block.line}"


@pytest.mark.parametrize("path", PAGES)
def test_every_command_and_option_of_a_page_exists(path: Path) -> None:
    context = click.Context(cli)
    for line in harness_commands(path.read_text(encoding="utf-8")):
        words = shlex.split(line.replace("…", " "), comments=True)[1:]
        if not words or words[0].startswith("-") or words[0] == "COMMAND":
            continue
        command = cli.get_command(context, words[0])
        assert command is not None, line
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("path", PAGES)
def test_links_to_files_of_the_project_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not missing


def test_the_results_in_the_readme_are_those_of_the_published_leaderboard() -> None:
    """Every figure; if the leaderboard has changed, the failure shows the lines that the README should have."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- results: (\S+) -->\n((?:\|.*\n)+)", text)
    assert found is not None
    (table,) = json.loads((ROOT / found[1]).read_text(encoding="utf-8"))["tables"]
    rows = {row["method"]: row for row in table["rows"]}
    head, _, *lines = found[2].splitlines()
    tasks = [cell for cell in _cells(head) if cell in table["headlines"]]
    expected = [_line(_cells(line)[0], rows[_cells(line)[0].partition(" ")[0]], tasks) for line in lines]
    assert lines == expected, "\n".join(["Replace the rows of README's results by:", *expected])


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _line(label: str, row: dict[str, Any], tasks: list[str]) -> str:
    mean = row["mean"]
    spread = "" if mean["sd"] is None else f" ± {100 * mean['sd']:.1f}"
    interval = " to ".join(f"{100 * bound:.1f}" for bound in mean["ci95"])
    cells = [label, f"{100 * mean['value']:.1f}{spread}", interval]
    cells += [f"{100 * row['tasks'][task]['value']:.1f}" for task in tasks]
    cells += [str(len(row["seeds"])), *(f"{row['parameters'][name]:,}" for name in ("stored", "active"))]
    return f"| {' | '.join(cells)} |"
