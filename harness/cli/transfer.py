"""The command `transfer`."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from harness.cli.options import DATA, EVAL_KEYS, JSON, MODEL, PROTOCOL, print_json

LOG = logging.getLogger(__name__)


@click.command("transfer")
@click.argument("run", type=click.Path(path_type=Path))
@EVAL_KEYS
@DATA
@MODEL
@PROTOCOL
@JSON
def transfer_command(
    run: Path, assignments: tuple[str, ...], data: str | None, model: str | None, protocol: str | None, as_json: bool
) -> None:
    """Evaluate the weights of each task on every task.

    For a finished RUN of a method with weights for each task, such as one LoRA for each: the examples of every task are
    predicted with the weights of every other task, and with the base model. Nothing is trained. The table, a CSV file
    and the picture of the matrix are stored in RUN/transfer. Run the same command again to resume.
    """
    from harness.config.keys import parse_assignments
    from harness.config.suites import suite_of
    from harness.leaderboard.transfer import csv_of, protocol_of, render_transfer, transfer_pictures
    from harness.pipeline.transfer import transfer
    from harness.scoring.score import check_protocol
    from harness.store.files import write_atomic
    from harness.store.finished import open_finished

    check_protocol(suite_of(open_finished(run).record.spec.suite), protocol)
    done = transfer(run, parse_assignments(assignments), data=data, model=model)
    chosen = protocol_of(done.transfer, protocol)
    files = {"transfer.csv": csv_of(done.transfer)} | transfer_pictures(
        done.transfer, chosen, f"{done.transfer.settings.run_id}, {chosen}"
    )
    for name, content in files.items():
        write_atomic(done.directory / name, content)
    if as_json:
        print_json({"directory": str(done.directory), **done.transfer.model_dump(mode="json")})
        return
    if not done.fresh:
        LOG.info("this matrix is already complete: %s", done.directory)
    click.echo(render_transfer(done.transfer, chosen))
    click.echo(f"transfer: {done.directory}")


COMMANDS = (transfer_command,)
