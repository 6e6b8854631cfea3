"""Commands about leaderboards: `plan`, `sweep`, `leaderboard`, `verify`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.options import DATA, JSON, OUT, PROTOCOL, print_json

LOG = logging.getLogger(__name__)

FILE = click.argument("file", type=click.Path(path_type=Path))
BOARD_DATA = click.option("--data", help="Data to use instead of the file's: a folder, a file or a hub data set.")
BOARD_MODEL = click.option("--model", help="Base model to use instead of the file's.")


@click.command("plan")
@FILE
@BOARD_DATA
@BOARD_MODEL
@OUT
@JSON
def plan_command(file: Path, data: str | None, model: str | None, out: Path, as_json: bool) -> None:
    """Estimate the cost of a leaderboard FILE.

    Prints the runs that `harness sweep FILE` would start, with their parameters, steps and time, and the runs that are
    not possible, with the reason. Nothing is trained.
    """
    from harness.sweep.entries import with_location
    from harness.sweep.jobs import Jobs
    from harness.sweep.plan import make_plan, render, to_json
    from harness.sweep.spec import read_board

    plan = make_plan(Jobs(with_location(read_board(file), data, model), out))
    if as_json:
        print_json(to_json(plan))
    else:
        click.echo(render(plan))
    if plan.impossible:
        sys.exit(1)


@click.command("sweep")
@FILE
@BOARD_DATA
@BOARD_MODEL
@OUT
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time, one process each (default: one per device).")
@click.option("--devices", metavar="0,1|auto", help="GPUs to distribute the runs over, one GPU per run.")
@click.option(
    "--per-device",
    metavar="K|auto",
    help="Runs that share a GPU at a time: a number, or auto for as many as measured memory allows (default: 1).",
)
@click.option(
    "--engine",
    default="local",
    show_default=True,
    metavar="local|ray[:ADDRESS]",
    help="Where to run: processes of this machine, or tasks of a Ray cluster that shares the folder of runs.",
)
@click.option(
    "--keep-going/--stop-at-failure",
    default=True,
    show_default=True,
    help="Whether to start further runs after one has failed.",
)
def sweep_command(
    file: Path,
    data: str | None,
    model: str | None,
    out: Path,
    jobs: int | None,
    keep_going: bool,
    **where: Any,
) -> None:
    """Start all missing runs of a leaderboard FILE.

    Learning rates are tuned on dev first if FILE says so. The leaderboard's Markdown and figures are written next to
    FILE. Run the same command again to resume.
    """
    from harness.leaderboard.files import board_of_file, write_board
    from harness.sweep.engines import EngineOptions, open_executor
    from harness.sweep.entries import with_location
    from harness.sweep.jobs import Jobs
    from harness.sweep.scheduler import SweepOptions, sweep
    from harness.sweep.spec import read_board

    board = with_location(read_board(file), data, model)
    with open_executor(EngineOptions(**where), out) as executor:
        options = SweepOptions(n_parallel=jobs, keep_going=keep_going)
        done = sweep(Jobs(board, out), file.stem, executor, options)
    for line in done.lines():
        click.echo(line)
    if done.n_done:
        for path in write_board(board_of_file(file, board, out)):
            click.echo(path)
    if not done.ok:
        sys.exit(1)


@click.command("leaderboard")
@click.argument("name")
@click.option(
    "--format", "form", type=click.Choice(["markdown", "csv", "json"]), default="markdown", help="Output format."
)
@click.option("--write", is_flag=True, help="Write leaderboards/NAME.md, .csv, .json and figures instead of printing.")
@click.option("--check", is_flag=True, help="Exit with 1 if leaderboards/NAME.md does not match the runs.")
@click.option("--publish", is_flag=True, help="Verify the runs, copy them to leaderboards/records, write from those.")
@OUT
@PROTOCOL
def leaderboard_command(
    name: str, form: str, write: bool, check: bool, publish: bool, out: Path, protocol: str | None
) -> None:
    """Print or write the leaderboard of finished runs.

    NAME is a suite, or the name of one of leaderboards/*.toml. With --write and --check, published records are
    included.
    """
    from harness.leaderboard.files import FOLDER, RECORDS, check_board, make_board, rendered, write_board

    board = make_board(name, out, protocol, own=not (write or check or publish))
    if publish:
        from harness.leaderboard.publish import publish_all

        records = FOLDER / RECORDS
        done = publish_all(board.content, records)
        for path in done.folders:
            click.echo(f"published: {path}")
        for run in done.refused:
            LOG.warning("not published: %s", run.reason)
        if done.refused:
            sys.exit(1)
        board = make_board(name, records, protocol)
    if write or publish:
        for path in write_board(board):
            click.echo(path)
    elif check:
        check_board(board)
    else:
        click.echo(rendered(board, form), nl=False)


@click.command("verify")
@click.argument("run", type=click.Path(path_type=Path))
@DATA
@click.option("--publish", is_flag=True, help="If all checks pass, copy the run to leaderboards/records.")
@JSON
def verify_command(run: Path, data: str | None, publish: bool, as_json: bool) -> None:
    """Verify a RUN or a published record.

    Checks file hashes and data, and recomputes the scores from the predictions. The exit status is 1 if anything
    differs.
    """
    from harness.leaderboard.files import FOLDER, RECORDS
    from harness.leaderboard.verify import CheckOutcome, verify

    checks = verify(run, data)
    if as_json:
        print_json([vars(check) for check in checks])
    else:
        for check in checks:
            click.echo(check)
    if publish:
        from harness.leaderboard.publish import publish as copy

        click.echo(copy(run, checks, FOLDER / RECORDS), err=as_json)
    if any(check.outcome is CheckOutcome.DIFFERS for check in checks):
        sys.exit(1)


COMMANDS = (plan_command, sweep_command, leaderboard_command, verify_command)
