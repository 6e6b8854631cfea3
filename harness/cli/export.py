"""The command that writes adapters and models for other programs: `export`."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import click

from harness.cli.options import DATA, JSON, MODEL, print_json
from harness.errors import UsageError

LOG = logging.getLogger(__name__)


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--task", help="Task to export.")
@click.option("--all", "every", is_flag=True, help="Export every task, and print a command that serves all of them.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write; it must not exist yet.")
@click.option("--merge", is_flag=True, help="Write a whole model in float32 instead of an adapter.")
@click.option("--pad/--no-pad", default=None, help="Pad ranks to one that vLLM supports (default with --all).")
@DATA
@MODEL
@JSON
def export_command(
    run: Path,
    task: str | None,
    every: bool,
    out: Path,
    merge: bool,
    pad: bool | None,
    as_json: bool,
    **place: str | None,
) -> None:
    """Export a finished RUN as PEFT LoRA adapters.

    Writes one folder per task, which peft.PeftModel.from_pretrained and inference servers load, or with --merge one
    whole model.
    """
    if every == (task is not None):
        raise UsageError("give either --task T or --all")
    if merge and (every or pad is not None):
        raise UsageError("--merge writes the whole model for one --task: leave --all and --pad out")
    from harness.export.from_run import export_all, export_task, export_whole

    data, model = place["data"], place["model"]
    if task is None:
        done = export_all(run, out, pad=pad is not False, data=data, model=model)
    elif merge:
        done = export_whole(run, task, out, data=data, model=model)
    else:
        done = export_task(run, task, out, pad=bool(pad), data=data, model=model)
    for note in done.notes:
        LOG.info(note)
    if as_json:
        print_json(asdict(done))
        return
    for lora in done.loras:
        click.echo(f"{lora.task}: {lora.folder} (rank {lora.rank})")
    if merge:
        click.echo(f"merged model: {done.folder}")
    if done.command:
        click.echo(f"To serve all of them from one base model:\n{done.command}")


COMMANDS = (export_command,)
