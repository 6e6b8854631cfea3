"""Commands about leaderboards. Every command is a few lines; whatever is heavy is imported inside."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

OUT = click.option("--out", default="runs", show_default=True, type=click.Path(path_type=Path), help="folder of runs")
FILE = click.argument("file", type=click.Path(path_type=Path))
DATA = click.option("--data", help="folder, file or hub data set, in place of the file's")
MODEL = click.option("--model", help="base model, in place of the file's")
PROTOCOL = click.option("--protocol", help="scoring rule that is shown (default: the suite's first)")


@click.command("plan")
@FILE
@DATA
@MODEL
@OUT
@click.option("--json", "as_json", is_flag=True, help="print JSON for programs")
def plan_command(file: Path, data: str | None, model: str | None, out: Path, as_json: bool) -> None:
    """What a leaderboard's FILE would run: parameters, steps, time, and what is impossible. Trains nothing."""
    from harness.sweep.entries import with_place
    from harness.sweep.jobs import Jobs
    from harness.sweep.plan import make_plan, render, to_json
    from harness.sweep.spec import read_board

    plan = make_plan(Jobs(with_place(read_board(file), data, model), out))
    for line in plan.notices:
        click.echo(f"note: {line}", err=True)
    click.echo(json.dumps(to_json(plan), ensure_ascii=False, indent=1) if as_json else render(plan))
    if plan.impossible:
        sys.exit(1)


@click.command("sweep")
@FILE
@DATA
@MODEL
@OUT
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="runs at a time, each a process")
@click.option("--keep-going/--stop-at-failure", default=True, show_default=True, help="after a run has failed")
def sweep_command(file: Path, data: str | None, model: str | None, out: Path, jobs: int, keep_going: bool) -> None:
    """Make every run of a leaderboard's FILE that is missing, then its Markdown and pictures beside FILE."""
    from harness.leaderboard.files import board_of_file, write_board
    from harness.sweep.entries import with_place
    from harness.sweep.jobs import Jobs
    from harness.sweep.scheduler import sweep
    from harness.sweep.spec import read_board

    board = with_place(read_board(file), data, model)
    work = Jobs(board, out)

    def say(line: str) -> None:
        click.echo(line, err=True)

    for line in dict.fromkeys(n for _ in work.entries for n in work.notices):
        say(f"note: {line}")
    done = sweep(work, file.stem, say, at_once=jobs, keep_going=keep_going)
    for line in done.lines():
        click.echo(line)
    if done.n_done:
        for path in write_board(board_of_file(file, board, out)):
            click.echo(path)
    if not done.ok:
        sys.exit(1)


@click.command("leaderboard")
@click.argument("name")
@click.option("--format", "form", type=click.Choice(["markdown", "csv", "json"]), default="markdown")
@click.option("--write", is_flag=True, help="write leaderboards/NAME.md (.csv, .json, pictures) instead of printing")
@click.option("--check", is_flag=True, help="exit 1 where leaderboards/NAME.md differs from what the runs say")
@click.option("--publish", is_flag=True, help="verify its runs, copy them to leaderboards/records, write it from there")
@OUT
@PROTOCOL
def leaderboard_command(
    name: str, form: str, write: bool, check: bool, publish: bool, out: Path, protocol: str | None
) -> None:
    """Markdown from runs and, where it is written or checked, published records too.

    NAME: a suite, or one of leaderboards/*.toml.
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
            click.echo(f"not published: {run.reason}", err=True)
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
@click.option("--data", help="where the run's data are now")
@click.option("--publish", is_flag=True, help="copy the run to leaderboards/records, where it is one that may be")
@click.option("--json", "as_json", is_flag=True, help="print JSON for programs")
def verify_command(run: Path, data: str | None, publish: bool, as_json: bool) -> None:
    """Is a RUN, or a published record, what it says? Hashes, data, and scores recomputed from predictions."""
    from harness.leaderboard.files import FOLDER, RECORDS
    from harness.leaderboard.verify import Outcome, verify

    checks = verify(run, data)
    if as_json:
        click.echo(json.dumps([vars(check) for check in checks], ensure_ascii=False, indent=1))
    else:
        for check in checks:
            click.echo(check)
    if publish:
        from harness.leaderboard.publish import publish as copy

        click.echo(copy(run, checks, FOLDER / RECORDS), err=as_json)
    if any(check.outcome is Outcome.DIFFERS for check in checks):
        sys.exit(1)


COMMANDS = (plan_command, sweep_command, leaderboard_command, verify_command)
