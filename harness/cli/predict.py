"""Commands that predict examples of any file: `predict`, `submit`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from harness.cli.options import DATA, JSON, MODEL, print_json
from harness.reporting.numbers import counted

LOG = logging.getLogger(__name__)


@click.command("predict")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File of JSON lines to write.")
@click.option("--task", help="Task of the run that the examples belong to, where FILE does not name it.")
@click.option("--prompts", is_flag=True, help="Write the prompts too.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set eval.max_new_tokens, eval.batch_tokens or an inference field; may be repeated.",
)
@DATA
@MODEL
@JSON
def predict_command(run: Path, file: Path, assignments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Predict the examples of a FILE with a finished RUN.

    FILE has the form of the run's data, with answers or without; or it is JSON lines with a prompt, and an id and a
    task where they are known; or a .txt file with one prompt on each line. Methods that choose a task from the prompt
    need no task.

    Writes JSON lines with id, task, prediction and truncated, in the order of FILE. Run the same command again to
    resume after an interruption.
    """
    from harness.config.keys import parse_assignments
    from harness.pipeline.predict_file import FileRequest, predict_file

    done = predict_file(FileRequest(run=run, file=file, keys=parse_assignments(assignments), **options))
    if as_json:
        print_json(vars(done))
        return
    if not done.fresh:
        LOG.info("these predictions are already complete: %s", done.out)
    if done.chosen:
        LOG.info("tasks chosen from the prompts: %s", ", ".join(f"{task} {n}" for task, n in done.chosen.items()))
    click.echo(f"predictions: {done.out} ({counted(done.n, 'example')})")


@click.command("submit")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", help="Folder or file with the test split (default: the run's data).")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Zip to write.")
@click.option("--blank", is_flag=True, help="Leave the answers of tasks that the run does not have empty.")
@click.option("--run-data", help="New location of the run's data, if they have moved.")
@MODEL
@JSON
def submit_command(run: Path, as_json: bool, **options: Any) -> None:
    """Write a submission to a benchmark's competition.

    The answers of a finished RUN to the test split, as the zip that the competition's site takes. Predictions that the
    run has are used, and missing ones are generated. Run the same command again to resume after an interruption.
    """
    from harness.pipeline.submit import SubmitRequest, submit

    done = submit(SubmitRequest(run=run, **options))
    if as_json:
        print_json(vars(done))
        return
    if not done.fresh:
        LOG.info("this submission is already complete: %s", done.out)
    parts = {"from the run": done.n_stored, "generated": done.n_generated, "blank": done.n_blank}
    of = ", ".join(f"{n} {what}" for what, n in parts.items() if n)
    click.echo(f"submission: {done.out} ({counted(done.n, 'example')}: {of})")


COMMANDS = (predict_command, submit_command)
