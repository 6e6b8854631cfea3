"""The command `report`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.options import PROTOCOL


@click.command("report")
@click.argument("names", nargs=-1, required=True, metavar="NAME|RUNS...")
@click.option(
    "--out", default="report.html", show_default=True, type=click.Path(path_type=Path), help="The HTML file to write."
)
@click.option(
    "--runs", default="runs", show_default=True, type=click.Path(path_type=Path), help="For a NAME: folder of the runs."
)
@click.option("--all", "everything", is_flag=True, help="All examples, also if the file is then larger than 10 MB.")
@click.option("--no-examples", is_flag=True, help="No prompts, targets and predictions, whose licence may forbid it.")
@click.option("--matrix", "matrices", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
              help="A JSON file with a matrix, such as affinities of tasks; may be repeated.")  # fmt: skip
@click.option("--check", is_flag=True, help="Exit with 1 if the file does not match the runs; write nothing.")
@click.option(
    "--data", help="New location of the data, if they have moved; needed for records that are not of a sample."
)
@PROTOCOL
def report_command(
    names: tuple[str, ...],
    out: Path,
    runs: Path,
    protocol: str | None,
    check: bool,
    data: str | None,
    **options: object,
) -> None:
    """Write a leaderboard with its examples into one HTML file.

    NAME is a suite, or the name of one of leaderboards/*.toml; its runs are those of --runs, or else the published
    records. RUNS are directories of finished runs of one suite. The file needs no network and no server.

    Example: harness report runs/* --out report.html
    """
    from harness.leaderboard.report.make import (
        ReportOptions,
        board_for_report,
        check_report,
        make_report,
        write_report,
    )

    matrices = options["matrices"]
    assert isinstance(matrices, tuple)
    html = make_report(
        board_for_report(names, runs, protocol),
        ReportOptions(
            data=data,
            examples=not options["no_examples"],
            everything=bool(options["everything"]),
            matrices=matrices,
        ),
    )
    if check:
        check_report(out, html)
        return
    write_report(out, html)
    click.echo(f"{out}  {len(html.encode()) / 1e6:.1f} MB")


COMMANDS = (report_command,)
