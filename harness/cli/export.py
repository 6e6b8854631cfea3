"""The command that writes adapters and models for other programs: `export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from harness.cli.options import DATA, JSON, MODEL, print_json
from harness.errors import UsageError
from harness.export.formats import DEFAULT, FORMATS


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--task", help="Task to export.")
@click.option("--all", "every", is_flag=True, help="Export every task, and print a command that serves all of them.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write; it must not exist yet.")
@click.option(
    "--format",
    "form",
    default=DEFAULT,
    show_default=True,
    type=click.Choice(list(FORMATS)),
    help="; ".join(f"{name}: {form.description}" for name, form in FORMATS.items()) + ".",
)
@click.option("--pad/--no-pad", default=None, help="Pad ranks to one that vLLM supports (default with --all).")
@click.option(
    "--check/--no-check",
    default=True,
    help="Load the export with PEFT, if it is installed, and compare its outputs with the run's (default; float32).",
)
@DATA
@MODEL
@JSON
def export_command(
    run: Path,
    task: str | None,
    every: bool,
    out: Path,
    form: str,
    pad: bool | None,
    check: bool,
    as_json: bool,
    **place: str | None,
) -> None:
    """Export a finished RUN as PEFT LoRA adapters.

    Writes one folder per task, which peft.PeftModel.from_pretrained and inference servers load, or with --format
    merged one whole model.
    """
    if every == (task is not None):
        raise UsageError("give either --task T or --all")
    from harness.export.from_run import ExportOptions, export_run

    done = export_run(run, out, ExportOptions(format=form, task=task, pad=pad, check=check, **place))
    if as_json:
        print_json(asdict(done))
        return
    for lora in done.loras:
        click.echo(f"{lora.task}: {lora.folder} (rank {lora.rank})")
    if not done.loras:
        click.echo(f"{form} model: {done.folder}")
    if done.command:
        click.echo(f"To serve all of them from one base model:\n{done.command}")


COMMANDS = (export_command,)
